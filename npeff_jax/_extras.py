"""Optional dependencies: the error for a missing package says how to install it."""

from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS = {
    "flax": ("flax", "flax"),
    "optax": ("optax", "flax"),
    "jinja2": ("jinja2", "report"),
    "markupsafe": ("markupsafe", "report"),
    "matplotlib": ("matplotlib", "report"),
    "PIL": ("pillow", "report"),
    "transformers": ("transformers", "huggingface"),
    "huggingface_hub": ("transformers", "huggingface"),
    "tracr": ("tracr-pypi", "tracr"),
    "haiku": ("dm-haiku", "tracr"),
    "pandas": ("pandas", "tables"),
    "pyarrow": ("pyarrow", "tables"),
    "sklearn": ("scikit-learn", "demo"),
}
"""Per importable name, the package that provides it, and the extra of this project that installs it."""


@contextmanager
def needs(what: str, extra: str | None = None) -> Iterator[None]:
    """Convert a failed import of an optional package into an error that says how to install it.

    Args:
        what: feature that needs the package, for the message.
        extra: extra to recommend; by default the one that contains the package.

    Raises:
        ImportError: If a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        told = missing(what, error, extra)
        if told is None:
            raise
        raise ImportError(told, name=error.name) from error


def missing(what: str, error: ModuleNotFoundError, extra: str | None = None) -> str | None:
    """Return the message for a missing package, or None if no extra contains it."""
    name = (error.name or "").partition(".")[0]
    if name not in EXTRAS:
        return None
    package, own = EXTRAS[name]
    return (
        f"{what} needs {package}, which is not installed; install it with: pip install {package} (or, in a clone, with "
        f"all that goes with it: pip install -e '.[{extra or own}]')"
    )
