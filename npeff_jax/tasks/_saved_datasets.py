"""Reading of data sets saved by Hugging Face's ``datasets`` (``save_to_disk``), with pyarrow only."""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from npeff_jax._checks import listing
from npeff_jax._extras import needs

Row = tuple[str, Mapping[str, Any]]


def is_saved_dataset(folder: pathlib.Path) -> bool:
    """Return whether a folder holds a data set, or several splits, saved by ``datasets``."""
    return folder.is_dir() and any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def saved_columns(folder: pathlib.Path) -> list[str]:
    """Return the column names of a saved data set.

    Raises:
        ValueError: the data set is damaged, or has several splits.
    """
    with needs("a saved Hugging Face data set"):
        import pyarrow
    file = _files(folder)[0]
    try:
        with pyarrow.memory_map(str(file)) as source:
            return list(pyarrow.ipc.open_stream(source).schema.names)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} is no Arrow stream, or is damaged ({error})") from error


def saved_rows(folder: pathlib.Path, wanted: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a saved data set, with class numbers (``ClassLabel``) replaced by names.

    Raises:
        ValueError: the data set is damaged, has several splits, or is a selection of rows saved as indices.
    """
    with needs("a saved Hugging Face data set"):
        import pyarrow
    names, number = _class_names(folder, wanted), 0
    for file in _files(folder):
        try:
            with pyarrow.memory_map(str(file)) as source:
                for batch in pyarrow.ipc.open_stream(source):
                    for row in batch.select(list(wanted)).to_pylist():
                        number += 1
                        yield f"row {number}", {key: _named(value, names.get(key)) for key, value in row.items()}
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{file} is no Arrow stream, or is damaged ({error})") from error


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        raise ValueError(
            f"{folder} has the splits {listing(list(splits), 20)}; name the folder of one of them, such as "
            f"{folder / str(splits[0] if splits else 'train')}"
        )
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise ValueError(
            f"{folder} is a selection of rows; save it with its own: dataset.flatten_indices().save_to_disk(...)"
        )
    files = [folder / entry["filename"] for entry in state.get("_data_files", [])]
    absent = [file for file in files if not file.is_file()]
    if absent or not files:
        raise ValueError(f"{folder} lacks {absent[0].name if absent else 'its data'}; copy the whole folder")
    return files


def _class_names(folder: pathlib.Path, wanted: Sequence[str]) -> dict[str, list[str]]:
    info = folder / "dataset_info.json"
    features = (_json(info).get("features") or {}) if info.is_file() else {}
    found = {key: features.get(key) for key in wanted}
    return {key: value["names"] for key, value in found.items() if isinstance(value, dict) and value.get("names")}


def _named(value: Any, names: list[str] | None) -> Any:
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None  # -1 is an unknown label


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); save the data set again") from error
    return found if isinstance(found, dict) else {}
