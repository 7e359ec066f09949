"""Models and examples named on a command line: ``package.module:factory``, a file, a directory."""

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from npeff_jax._examples import count_examples, is_source, slice_examples
from npeff_jax.models import Model, from_huggingface


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleSet:
    """What ``--examples`` names.

    Attributes:
        examples: the pytree or sized source that the model is given.
        labels: (n,) of the data set, or None.
        display: what a person looks at, or None.
    """

    examples: Any
    labels: Any = None
    display: Any = None


def load_model(name: str, mask: tuple[str, ...] = ()) -> Model:
    """The model that ``name`` stands for.

    Args:
        name: ``package.module:factory`` or ``path/file.py:factory``, a function without arguments that returns a
            `Model`; or a directory with a Hugging Face checkpoint.
        mask: globs over parameter paths to explain; the model's own choice if empty.

    Raises:
        ValueError: it is none of these.
    """
    if ":" in name and not Path(name).exists():
        model = load_factory("--model", name)()
        if not isinstance(model, Model):
            raise ValueError(f"--model {name} returned {type(model).__name__}; expected a npeff_jax.Model")
    elif is_checkpoint(name):
        model = from_huggingface(name)
    else:
        raise ValueError(
            f"--model {name} is neither package.module:factory (a function that returns a Model) nor a directory with "
            "a Hugging Face checkpoint (config.json and safetensors)"
        )
    return dataclasses.replace(model, mask=mask) if mask else model


def is_checkpoint(name: str) -> bool:
    """Whether ``name`` is a directory with a Hugging Face checkpoint or a PEFT adapter."""
    return any((Path(name) / file).is_file() for file in ("config.json", "adapter_config.json"))


def load_examples(name: str, part: str | None = None) -> ExampleSet:
    """The examples that ``name`` stands for.

    Args:
        name: ``package.module:factory`` or ``path/file.py:factory``, a function without arguments that returns
            examples, (examples, labels) or (examples, labels, display); or an .npz file whose arrays are the examples,
            ``labels`` and ``display`` apart.
        part: ``start:stop``, the part of them to use.

    Raises:
        ValueError: it is neither, or the part is empty.
    """
    if ":" in name and not Path(name).exists():
        made = load_factory("--examples", name)()
        found = ExampleSet(*made) if isinstance(made, tuple) and 2 <= len(made) <= 3 else ExampleSet(made)
    elif name.endswith(".npz"):
        with np.load(name, allow_pickle=False) as arrays:
            loaded = {key: arrays[key] for key in arrays.files}
        labels, display = loaded.pop("labels", None), loaded.pop("display", None)
        if not loaded:
            raise ValueError(f"--examples {name} has no arrays besides labels and display; expected the model's inputs")
        found = ExampleSet(next(iter(loaded.values())) if len(loaded) == 1 else loaded, labels, _texts(display))
    else:
        raise ValueError(
            f"--examples {name} is neither package.module:factory (a function that returns the examples) nor an .npz"
        )
    return found if part is None else _part(found, part)


def load_factory(option: str, name: str) -> Callable[[], Any]:
    """The function that ``package.module:factory`` or ``path/file.py:factory`` names."""
    module_name, _, attribute = name.rpartition(":")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")  # a module in the directory the command is run in, as `python -m` finds it
    try:
        module = _from_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ValueError(f"{option} {name}: cannot import {module_name} ({error})") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ValueError(f"{option} {name}: {module_name} has no function {attribute}")
    return factory


def _from_file(path: Path) -> Any:
    if path.stem in sys.modules and getattr(sys.modules[path.stem], "__file__", None) == str(path.resolve()):
        return sys.modules[path.stem]
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _texts(display: Any) -> Any:
    """Strings of an .npz as lists: one text an example, or several."""
    if display is None or display.dtype.kind != "U":
        return display
    return display.tolist()


def _part(found: ExampleSet, part: str) -> ExampleSet:
    start, colon, stop = part.partition(":")
    n = count_examples(found.examples)
    try:
        rows = slice(*slice(int(start or 0), int(stop or n)).indices(n))
    except ValueError:
        colon = ""
    if not colon or rows.start >= rows.stop:
        raise ValueError(f"--part {part} selects none of the {n} examples; expected start:stop, such as 0:{n}")
    if is_source(found.examples):
        examples = slice_examples(found.examples, rows)
    else:
        import jax

        examples = jax.tree.map(lambda leaf: leaf[rows], found.examples)
    labels = None if found.labels is None else found.labels[rows]
    return ExampleSet(examples, labels, None if found.display is None else found.display[rows])
