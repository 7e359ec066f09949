"""Saving a decomposition with its report, settings and model card in one folder, and sharing it on the hub."""

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
    """The contents of a folder written by `save_pretrained`.

    Attributes:
        decomposition: the components; pseudo-Fishers stay on disk and are read by row.
        report: the report's data.
        config: content of ``config.json``: what was explained, with which settings.
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
    """Write a decomposition with its report, settings and model card to a folder, to copy or to `push_to_hub`.

    The folder holds ``components`` (for `load_decomposition`), ``report.html``, its data ``report.json``,
    ``config.json`` with everything that determined the result, and a model card, ``README.md``. The only examples in it
    are those that the report shows.

    Args:
        directory: folder to create; it must not exist yet, or be empty.
        decomposition: the components.
        report: from `report_data`; by default a report of the decomposition alone. The page is left out if jinja2 is
            not installed.
        model_name: name of the explained model on the hub, or a description.
        examples_name: name of the data set.
        notes: further paragraphs of the card, in Markdown.
        license: license of the result, as the hub names it ("apache-2.0").

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder is not empty.
        ValueError: If the report is of another decomposition.
    """
    folder = absolute_path(directory, "directory")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already; choose another directory, or remove it first")
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
        shutil.rmtree(partial)  # left by an interrupted save
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
    partial.rename(folder)  # atomic: the folder appears complete or not at all
    return folder


def from_pretrained(source: str | os.PathLike[str], *, revision: str | None = None) -> Published:
    """Read a folder written by `save_pretrained`, or fetch it once from the Hugging Face hub by name.

    A local folder needs no network. Nothing in the folder is executed.

    Raises:
        FileNotFoundError: If there is no such folder, locally or on the hub.
        ValueError: If the folder holds no decomposition, or one of another version.
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
    """Upload a folder of `save_pretrained` to the Hugging Face hub, with the login stored on this machine.

    Args:
        directory: the folder.
        repository: name on the hub, ``user/name``; created if it does not exist.
        private: whether a new repository is visible to its owner only. Note that the report shows examples.
        revision: branch of the repository.

    Returns:
        The URL.

    Raises:
        ImportError: If huggingface_hub is missing.
        OSError: If the upload fails.
        ValueError: If the folder holds no decomposition.
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
    """Return the text of the model card: what was explained, key figures, components, and how to load them."""
    run, examples = data.run, data.examples
    name = config["model"] or f"a model of {run.n_parameters:,} parameters"
    flavour = "LRM-NPEFF" if run.flavour == "low_rank" else "D-NPEFF"
    head = ["library_name: npeff_jax", "tags: [interpretability, npeff, fisher-information]"]
    head += [f"license: {license}"] if license else []
    # The hub accepts only the name of a repository here.
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
    """Escape a text for use within a line of Markdown."""
    flat = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|!" else letter for letter in flat)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
