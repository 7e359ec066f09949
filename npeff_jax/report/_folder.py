"""Results that travel: a folder with a decomposition, its report, its settings and a model card."""

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from npeff_jax._extras import needs
from npeff_jax._version import __version__
from npeff_jax.factorization import Decomposition, load_decomposition
from npeff_jax.report._data import ReportData, read_report_data
from npeff_jax.report._write import report_data, write_html
from npeff_jax.store import absolute_path

COMPONENTS, REPORT, DATA, CONFIG, CARD = "components", "report.html", "report.json", "config.json", "README.md"
_FORMAT = "npeff-decomposition"
_VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Published:
    """What `from_pretrained` found in a folder.

    Attributes:
        decomposition: the components; pseudo-Fishers stay on disk and are read by row.
        report: the report's data.
        config: what was explained and how: the content of ``config.json``.
        path: the folder.
    """

    decomposition: Decomposition
    report: ReportData
    config: dict[str, Any]
    path: pathlib.Path


def save_pretrained(
    directory: str | os.PathLike[str],
    decomposition: Decomposition,
    report: ReportData | None = None,
    *,
    model_name: str = "",
    examples_name: str = "",
    notes: str = "",
    license: str = "",
) -> pathlib.Path:
    """Write a decomposition to a folder that tells a stranger what it is: to be copied, or pushed with `push_to_hub`.

    In it are ``components`` (what `load_decomposition` reads), ``report.html``, its data ``report.json``,
    ``config.json`` with everything that determined the result, and a model card, ``README.md``. No example is in it but
    those that the report shows.

    Args:
        directory: to be made; it must not be there yet, or be empty.
        decomposition: the components.
        report: from `report_data`; one of the decomposition alone by default, without a page where jinja2 is missing.
        model_name: what was explained: a name on the hub, or a description.
        examples_name: which examples it was explained on.
        notes: further paragraphs of the card, Markdown.
        license: of the result, as the hub names them ("apache-2.0").

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder is there and holds something.
        ValueError: the report is of another decomposition.
    """
    folder = absolute_path(directory, "directory")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; choose another directory, or remove it first")
    data = report_data(decomposition) if report is None else report
    if data.run.n_components != decomposition.n_components or data.run.model != decomposition.schema.model:
        raise ValueError(
            f"the report is of {data.run.n_components} components of the model {data.run.model}, the decomposition has "
            f"{decomposition.n_components} of {decomposition.schema.model}; make it from this decomposition"
        )
    schema = decomposition.schema
    config = {
        "format": _FORMAT,
        "version": _VERSION,
        "npeff_jax": __version__,
        "model": model_name,
        "examples": examples_name,
        "kind": schema.kind.value,
        "n_components": decomposition.n_components,
        "stopped": decomposition.stopped,
        "settings": decomposition.settings,
        "pefs": {name: value for name, value in schema.to_json().items() if name != "layout"},
    }
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)  # of a save that was cut off
    partial.mkdir(parents=True)
    decomposition.save(partial / COMPONENTS)
    data.write(partial / DATA)
    try:
        write_html(partial / REPORT, data)
    except ImportError:
        if report is not None:
            raise
    (partial / CONFIG).write_text(json.dumps(config, indent=1, default=_plain) + "\n", encoding="utf-8")
    (partial / CARD).write_text(_card(decomposition, data, config, notes, license), encoding="utf-8")
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)  # it is there whole or not at all
    return folder


def from_pretrained(source: str | os.PathLike[str], *, revision: str | None = None) -> Published:
    """Read what `save_pretrained` wrote: a folder, or a name on the Hugging Face hub, which is fetched once and cached.

    A folder needs no network. Nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such folder, and the hub did not give one of that name.
        ValueError: it holds no decomposition, or one of another version.
    """
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise TypeError(f"source={source!r} is no folder, and no name on the hub; pass one of them")
    folder = pathlib.Path(source).expanduser()
    if not folder.is_dir():
        folder = _fetch(str(source), revision)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        config = None
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        raise ValueError(f"{folder} holds no decomposition; expected a folder that save_pretrained wrote")
    if config.get("version") != _VERSION:
        raise ValueError(f"{folder} has version {config.get('version')!r}, this package reads {_VERSION}")
    return Published(load_decomposition(folder / COMPONENTS), read_report_data(folder / DATA), config, folder)


def push_to_hub(
    directory: str | os.PathLike[str], repository: str, *, private: bool = True, revision: str | None = None
) -> str:
    """Upload a folder of `save_pretrained` to the Hugging Face hub, as who is logged in there.

    Args:
        directory: the folder.
        repository: its name on the hub, ``user/name``; made if it is not there.
        private: whether a new one is seen by its owner alone. The report shows examples: look at it first.
        revision: the branch.

    Returns:
        The address.

    Raises:
        ImportError: huggingface_hub is missing.
        OSError: the hub did not take it.
        ValueError: the folder holds no decomposition.
    """
    folder = from_pretrained(absolute_path(directory, "directory")).path
    with needs("the hub"):
        import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder), revision=revision)
    except Exception as error:
        raise OSError(
            f"the Hugging Face hub did not take {repository} ({type(error).__name__}: {error}); log in with hf auth "
            "login, and look at the name"
        ) from error
    return f"https://huggingface.co/{repository}"


def _fetch(name: str, revision: str | None) -> pathlib.Path:
    with needs("a result on the hub"):
        import huggingface_hub

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, revision=revision))
    except Exception as error:
        raise FileNotFoundError(
            f"{name} is not a folder, and the Hugging Face hub did not give one of that name "
            f"({type(error).__name__}: {error}); without a network, pass a folder that save_pretrained wrote"
        ) from error


def _card(decomposition: Decomposition, data: ReportData, config: dict[str, Any], notes: str, license: str) -> str:
    """The model card: what was explained, figures, components, how to load it."""
    run, examples = data.run, data.examples
    name = config["model"] or f"a model of {run.n_parameters:,} parameters"
    flavour = "LRM-NPEFF" if run.flavour == "low_rank" else "D-NPEFF"
    head = ["library_name: npeff_jax", "tags: [interpretability, npeff, fisher-information]"]
    head += [f"license: {license}"] if license else []
    # Only what names a repository of the hub may stand there.
    head += [f"base_model: {config['model']}"] if config["model"].count("/") == 1 and " " not in config["model"] else []
    loss = decomposition.loss
    figures = [
        ("components", f"{run.n_components} ({flavour})"),
        ("examples decomposed", f"{run.n_decomposed:,}" + (f" of {config['examples']}" if config["examples"] else "")),
        ("parameters explained", f"{run.n_parameters:,}"),
        ("share of the PEFs' squared norm explained", "–" if np.isnan(loss) else f"{1 - loss:.1%}"),
    ]
    if examples.explained is not None:
        figures.append(("the same of held-out examples", f"{examples.explained:.1%}"))
    ratios = [c.causal.kl_ratio for c in data.components if c.causal is not None and c.causal.kl_ratio is not None]
    if ratios:
        figures.append(("median KL ratio of the components' moves", f"{np.median(ratios):.2f}"))
    stable = [c.stability for c in data.components if c.stability is not None]
    if stable:
        figures.append(("median similarity with another run", f"{np.median(stable):.2f}"))
    largest = sorted(data.components, key=lambda c: -c.share)[:10]
    pefs = ", ".join(f"{k}: {v}" for k, v in config["pefs"]["representation"].items())
    return "\n".join(
        [
            "---",
            *head,
            "---",
            "",
            f"# {data.title}",
            "",
            f"Components of how predictions of {name} react to its parameters, found by NPEFF (non-negative "
            "per-example Fisher factorization). Each component is a direction in the parameters that a group of "
            f"examples shares. Open `{REPORT}` to look at them.",
            "",
            *(["", notes.strip(), ""] if notes.strip() else []),
            "| figure | value |",
            "|---|---|",
            *(f"| {what} | {value} |" for what, value in figures),
            "",
            "The largest components:",
            "",
            *(f"- {c.index}: {_inline(c.headline)}" for c in largest),
            "",
            "## How to load it",
            "",
            "```python",
            "import npeff_jax as npeff",
            "",
            'found = npeff.report.from_pretrained("path/to/this/folder")  # or its name on the hub',
            "found.decomposition.pseudo_fisher(0)",
            "```",
            "",
            "With the model that was explained, `npeff.component_direction(model, found.decomposition, 0)` is the move "
            "of its parameters, and `npeff.fit_coefficients` finds other examples' coefficients.",
            "",
            "## How it was made",
            "",
            f"PEFs: {pefs}. {config['stopped']} Everything is in `{CONFIG}`.",
            "",
        ]
    )


def _inline(text: str) -> str:
    """A text as a part of a line of Markdown."""
    flat = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|!" else letter for letter in flat)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
