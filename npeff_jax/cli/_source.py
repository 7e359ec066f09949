"""Models and examples named on a command line: ``package.module:factory``, a file, a directory."""

import dataclasses
import importlib
import importlib.util
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from npeff_jax._checks import listing
from npeff_jax._examples import count_examples
from npeff_jax._progress import Progress
from npeff_jax.models import Model, from_huggingface, huggingface_processor
from npeff_jax.tasks import (
    Columns,
    Dataset,
    column_names,
    is_saved_dataset,
    match_labels,
    read_image_folder,
    read_table,
)

_TEXTS = ("text", "sentence", "sentence1", "premise", "question1", "question", "content", "review", "comment", "body")
_PAIRS = {"sentence1": "sentence2", "premise": "hypothesis", "question1": "question2", "text": "text_pair"}
_LABELS = ("label", "labels", "gold_label", "target", "class", "category", "is_duplicate", "sentiment")


@dataclasses.dataclass(frozen=True)
class Reading:
    """Options for reading a data set from a file.

    Attributes:
        text: column of texts in a table; by default one with a usual name.
        pair: column of second texts.
        label: column of labels; by default one with a usual name.
        label_names: names of the labels in the data, in the order of the model's classes.
        encoding: encoding of a text file; by default UTF-8.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    label_names: tuple[str, ...] = ()
    encoding: str | None = None


def load_model(name: str, mask: tuple[str, ...] = ()) -> Model:
    """Load the model specified by ``name``.

    Args:
        name: ``package.module:factory`` or ``path/file.py:factory``, a function without arguments that returns a
            `Model`; or a directory with a Hugging Face checkpoint.
        mask: globs over parameter paths to explain; the model's own choice if empty.

    Raises:
        ValueError: If ``name`` is none of these.
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
    """Return whether ``name`` is a directory with a Hugging Face checkpoint or a PEFT adapter."""
    return any((Path(name) / file).is_file() for file in ("config.json", "adapter_config.json"))


def load_examples(
    name: str,
    part: str | None = None,
    *,
    model: str | None = None,
    reading: Reading | None = None,
    progress: Progress = False,
) -> Dataset:
    """Load the examples specified by ``name``.

    Args:
        name: ``package.module:factory`` or ``path/file.py:factory``, a function without arguments that returns a
            `Dataset`, examples, (examples, labels) or (examples, labels, display); an .npz file whose arrays are the
            examples, except ``labels`` and ``display``; a table; or a folder of image folders.
        part: ``start:stop``, the part of the examples to use.
        model: argument of ``--model``; for tables and images a Hugging Face directory, whose processor encodes them.
        reading: columns and names of labels.
        progress: progress of decoding images.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If ``name`` is none of these, or the part is empty.
    """
    reading, path = reading or Reading(), Path(name).expanduser()
    names = reading.label_names or None
    if ":" in name and not path.exists():
        made = load_factory("--examples", name)()
        if isinstance(made, Dataset):
            found = made if names is None else dataclasses.replace(made, label_names=names)
        else:
            entries = made if isinstance(made, tuple) and 2 <= len(made) <= 3 else (made,)
            found = _dataset(name, names, *entries)
    elif name.endswith(".npz"):
        found = _from_npz(name, names)
    elif is_saved_dataset(path):
        found = read_table(path, _processor(name, model), _columns(path, reading))
    elif path.is_dir():
        processor = _processor(name, model)
        found = read_image_folder(path, processor, label_names=names, progress=progress)
    elif path.is_file():
        found = read_table(path, _processor(name, model), _columns(path, reading), encoding=reading.encoding)
    else:
        raise ValueError(
            f"--examples {name} is neither a file, nor a folder, nor package.module:factory; expected a table, a "
            "folder of image folders, a saved Hugging Face data set, an .npz, or a function that returns the examples"
        )
    return part_of(found, part)


def is_table(name: str) -> bool:
    """Return whether ``name`` is a file of rows and columns."""
    return Path(name).expanduser().is_file() and not name.endswith(".npz")


def part_of(found: Dataset, part: str | None) -> Dataset:
    """Return the part ``start:stop`` of a data set, or all of it if ``part`` is None."""
    return found if part is None else _part(found, part)


def check_labels(name: str, found: Dataset, model: Model) -> Dataset:
    """Return the data set with labels as class indices of the model, matched by name where both have names.

    Raises:
        ValueError: If a label is not a class of the model, or names cannot be matched.
    """
    try:
        return match_labels(found, model)
    except ValueError as error:
        told = str(error).replace("pass label_names", "pass --label-names")
        raise ValueError(f"--examples {name}: {told}") from None


def _dataset(
    name: str, names: tuple[str, ...] | None, examples: Any, labels: Any = None, display: Any = None
) -> Dataset:
    try:
        return Dataset(examples, labels, display, names)
    except ValueError as error:
        raise ValueError(f"--examples {name}: {error}") from None


def _from_npz(name: str, names: tuple[str, ...] | None) -> Dataset:
    try:
        with np.load(name, allow_pickle=False) as arrays:
            loaded = {key: arrays[key] for key in arrays.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"--examples {name} cannot be read as arrays without pickles ({error})") from error
    labels, display, groups = (loaded.pop(key, None) for key in ("labels", "display", "groups"))
    if not loaded:
        raise ValueError(f"--examples {name} has no arrays besides labels and display; expected the model's inputs")
    inputs = next(iter(loaded.values())) if len(loaded) == 1 else loaded
    return dataclasses.replace(_dataset(name, names, inputs, labels, _texts(display)), groups=groups)


def _processor(examples: str, model: str | None) -> Any:
    if model is None or not is_checkpoint(model):
        raise ValueError(
            f"--examples {examples} is raw data: it needs --model with a Hugging Face directory, to encode it as that "
            "model does; for another model pass package.module:factory, a function that returns the examples"
        )
    return huggingface_processor(model)


def _columns(file: Path, reading: Reading) -> Columns:
    """Return the columns to read: those named in ``reading``, else those with usual names. Prints the choice."""
    found = column_names(file, reading.encoding)
    text = reading.text or next((name for name in _TEXTS if name in found), None)
    if text is None:
        raise ValueError(f"{file} has the columns {listing(found, 20)}; say which is the text: --text-column NAME")
    pair = reading.pair or (_PAIRS.get(text) if reading.text is None and _PAIRS.get(text) in found else None)
    label = reading.label or next((name for name in _LABELS if name in found), None)
    said = [
        f"text from {text!r}",
        *([f"pairs from {pair!r}"] if pair else []),
        f"labels from {label!r}" if label else "",
    ]
    print(f"{file}: {', '.join(word for word in said if word)}" + ("" if label else "; no labels"))
    return Columns(text, pair, label, reading.label_names or None, skip=("-",) if label == "gold_label" else ())


def load_factory(option: str, name: str) -> Callable[[], Any]:
    """Import the function that ``package.module:factory`` or ``path/file.py:factory`` names."""
    module_name, _, attribute = name.rpartition(":")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")  # import from the current directory, like `python -m`
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
    """Return an array of strings as a list, one text or list of texts per example; other arrays unchanged."""
    if display is None or display.dtype.kind != "U":
        return display
    return display.tolist()


def is_texts(display: Any) -> bool:
    """Return whether a data set's display holds texts: one, or several, per example."""
    first = display[0] if display is not None and len(display) else None
    return isinstance(first, str) or (isinstance(first, tuple | list) and all(isinstance(s, str) for s in first))


def _part(found: Dataset, part: str) -> Dataset:
    start, colon, stop = part.partition(":")
    n = count_examples(found.examples)
    try:
        rows = slice(*slice(int(start or 0), int(stop or n)).indices(n))
    except ValueError:
        colon = ""
    if not colon or rows.start >= rows.stop:
        raise ValueError(f"--part {part} selects none of the {n} examples; expected start:stop, such as 0:{n}")
    return found.subset(rows)
