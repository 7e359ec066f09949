"""Text data sets as files: rows of named columns, from CSV, TSV, JSONL and Parquet."""

import csv
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from npeff_jax._checks import listing
from npeff_jax.models import TextProcessor
from npeff_jax.tasks._dataset import Dataset

NLI_LABELS = ("entailment", "neutral", "contradiction")
QQP_LABELS = ("not_duplicate", "duplicate")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a table are text and label.

    Attributes:
        text: the column to read.
        pair: the second column, for tasks on pairs.
        label: the column of labels; None for data without.
        label_names: the labels in the order of their numbers, as the column spells them. Without it a column of
            integers is taken as it is, and names are numbered in sorted order.
        skip: labels whose rows are left out, such as SNLI's ``"-"``, where annotators did not agree.
    """

    text: str
    pair: str | None = None
    label: str | None = "label"
    label_names: tuple[str, ...] | None = None
    skip: tuple[str, ...] = ()


def read_table(
    file: str | pathlib.Path, processor: TextProcessor, columns: Columns, *, limit: int | None = None, start: int = 0
) -> Dataset:
    """A text data set from a file of named columns: ``.csv``, ``.tsv``, ``.txt`` (tabs), ``.jsonl`` or ``.parquet``.

    Args:
        file: the file; its ending says the format.
        processor: of the model, from `models.huggingface_processor`.
        columns: which columns to read.
        limit: at most so many examples, after ``start``.
        start: examples to pass over first, counted without the skipped labels.

    Returns:
        Encoded examples, labels, and the raw texts as ``display``: strings, or pairs of strings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no rows, a column that is not there, a label out of range or unknown.
    """
    file = pathlib.Path(file)
    wanted = [name for name in (columns.text, columns.pair, columns.label) if name is not None]
    rows = (row for row in _rows(file, wanted) if columns.label is None or str(row[columns.label]) not in columns.skip)
    try:
        chosen = list(itertools.islice(rows, start, None if limit is None else start + limit))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read as a table in UTF-8 ({error})") from error
    if not chosen:
        raise ValueError(f"{file} has no examples" + (f" from number {start} on" if start else ""))
    texts = [_text(row[columns.text]) for row in chosen]
    pairs = None if columns.pair is None else [_text(row[columns.pair]) for row in chosen]
    labels, names = None, columns.label_names
    if columns.label is not None:
        labels, names = _number_labels([row[columns.label] for row in chosen], names, file)
    display = texts if pairs is None else list(zip(texts, pairs))
    return Dataset(processor(texts, pairs), labels, display, names)


def read_snli(
    file: str | pathlib.Path, processor: TextProcessor, *, limit: int | None = None, start: int = 0
) -> Dataset:
    """SNLI or MNLI as they are distributed (``.jsonl`` or ``.txt``), or MNLI as GLUE has it (``.tsv``), numbered
    entailment, neutral, contradiction. Examples without agreement among annotators are left out.

    Args, Returns and Raises are those of `read_table`.
    """
    columns = Columns("sentence1", "sentence2", "gold_label", NLI_LABELS, skip=("-", ""))
    return read_table(file, processor, columns, limit=limit, start=start)


def read_qqp(
    file: str | pathlib.Path, processor: TextProcessor, *, limit: int | None = None, start: int = 0
) -> Dataset:
    """Quora question pairs as GLUE has them (``.tsv`` with question1, question2, is_duplicate).

    Args, Returns and Raises are those of `read_table`.
    """
    columns = Columns("question1", "question2", "is_duplicate", QQP_LABELS)
    return read_table(file, processor, columns, limit=limit, start=start)


def _text(cell: Any) -> str:
    """A cell of a text column; one without a value (JSON's null, Parquet's) is an empty text."""
    return "" if cell is None else str(cell)


def _rows(file: pathlib.Path, wanted: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    if file.stat().st_size == 0:
        raise ValueError(f"{file} is empty")
    if file.suffix == ".parquet":
        yield from _parquet_rows(file, wanted)
    elif file.suffix in (".jsonl", ".json"):
        yield from _json_rows(file, wanted)
    elif file.suffix in (".csv", ".tsv", ".txt"):
        yield from _delimited_rows(file, wanted)
    else:
        raise ValueError(f"{file} ends in {file.suffix!r}; expected .csv, .tsv, .txt, .jsonl or .parquet")


def _delimited_rows(file: pathlib.Path, wanted: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """Comma-separated with quotes, or tab-separated without: GLUE's files have stray quotation marks in their texts."""
    with file.open(encoding="utf-8", newline="") as stream:
        comma = file.suffix == ".csv"
        reader = csv.reader(
            stream, delimiter="," if comma else "\t", quoting=csv.QUOTE_MINIMAL if comma else csv.QUOTE_NONE
        )
        header = next(reader)
        _check_columns(header, wanted, file)
        place = {name: header.index(name) for name in wanted}
        for cells in reader:
            if cells:
                if len(cells) <= max(place.values()):
                    raise ValueError(
                        f"{file}, line {reader.line_num}: {len(cells)} cells, the header has {len(header)}"
                    )
                yield {name: cells[i] for name, i in place.items()}


def _json_rows(file: pathlib.Path, wanted: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number} is not JSON ({error}); expected one object a line") from error
            if not isinstance(row, dict):
                raise ValueError(f"{file}, line {number} is a JSON {type(row).__name__}; expected one object a line")
            _check_columns(list(row), wanted, file)
            yield row


def _parquet_rows(file: pathlib.Path, wanted: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file} is not a Parquet file, or is damaged ({error})") from error
    _check_columns(table.schema_arrow.names, wanted, file)
    for batch in table.iter_batches(columns=list(wanted)):
        yield from batch.to_pylist()


def _check_columns(found: Sequence[str], wanted: Sequence[str], file: pathlib.Path) -> None:
    absent = [name for name in wanted if name not in found]
    if absent:
        raise ValueError(f"{file} has no column {absent[0]!r}; its columns are {listing(list(found), 20)}")


def _number_labels(
    values: Sequence[Any], names: tuple[str, ...] | None, file: pathlib.Path
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels as integers: by name where they are names, as they are where they are integers."""
    texts = [str(value).strip() for value in values]
    if all(text.lstrip("-").isdigit() for text in texts):
        numbers = np.array([int(text) for text in texts], np.int32)
        wrong = np.flatnonzero((numbers < 0) | (numbers >= (len(names) if names else np.inf)))
        if wrong.size:
            expected = f"expected 0 to {len(names) - 1}" if names else "labels must not be negative"
            raise ValueError(f"{file}: example {wrong[0]} has the label {numbers[wrong[0]]}; {expected}")
        return numbers, names
    names = names or tuple(sorted(set(texts)))
    unknown = [i for i, text in enumerate(texts) if text not in names]
    if unknown:
        raise ValueError(
            f"{file}: example {unknown[0]} has the label {texts[unknown[0]]!r}; expected one of {', '.join(names)}"
        )
    return np.array([names.index(text) for text in texts], np.int32), names
