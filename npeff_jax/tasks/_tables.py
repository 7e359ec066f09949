"""Reading of text data sets with named columns: CSV, TSV, JSONL, Parquet and saved ``datasets``."""

import bz2
import codecs
import csv
import dataclasses
import gzip
import io
import itertools
import json
import lzma
import math
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from npeff_jax._checks import check_callable, check_integer, listing, normalise
from npeff_jax._extras import needs
from npeff_jax.store import absolute_path
from npeff_jax.tasks._dataset import Dataset
from npeff_jax.tasks._labels import Processor, cell_text, number_labels
from npeff_jax.tasks._saved_datasets import Row, is_saved_dataset, saved_columns, saved_rows

NLI_LABELS = ("entailment", "neutral", "contradiction")
QQP_LABELS = ("not_duplicate", "duplicate")

TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet")
_COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns of texts and labels in a table.

    Labels that are names are matched to the model's classes if the processor has their names
    (`models.huggingface_processor`), and numbered accordingly.

    Attributes:
        text: column of texts.
        pair: column of second texts, for tasks on pairs.
        label: column of labels; None without labels.
        label_names: label names in the order of their numbers, as spelled in the column. By default integers are kept,
            and names are numbered in sorted order.
        skip: labels whose rows are left out, such as SNLI's ``"-"`` for disagreement among annotators.
    """

    text: str
    pair: str | None = None
    label: str | None = "label"
    label_names: tuple[str, ...] | None = None
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("text", "pair", "label"):
            value = getattr(self, name)
            if not isinstance(value, str) and (name == "text" or value is not None):
                raise TypeError(f"{name}={value!r} is a {type(value).__name__}; expected the name of a column")
        for name in ("label_names", "skip"):
            value = getattr(self, name)
            if isinstance(value, str) or not (value is None or hasattr(value, "__iter__")):
                raise TypeError(f"{name}={value!r} is a {type(value).__name__}; expected a list of labels")
            normalise(self, **{name: value if value is None else tuple(value)})
        if self.label_names is not None and len(set(self.label_names)) < len(self.label_names):
            raise ValueError(f"label_names={self.label_names} has a name twice; expected one for each class")


def read_table(
    file: str | pathlib.Path,
    processor: Processor,
    columns: Columns,
    *,
    limit: int | None = None,
    start: int = 0,
    encoding: str | None = None,
) -> Dataset:
    """Read a text data set from a file with named columns.

    Formats are ``.csv`` (commas or semicolons), ``.tsv`` or ``.txt`` (tabs), ``.jsonl`` and ``.parquet``, text formats
    also compressed (``.csv.gz``), and folders saved by Hugging Face's ``datasets`` (``save_to_disk``).

    Args:
        file: the file; its ending determines the format.
        processor: encoder of the model, from `models.huggingface_processor`.
        columns: columns to read.
        limit: maximum number of examples, after ``start``.
        start: number of examples to skip first, not counting rows with skipped labels.
        encoding: encoding of the text; by default UTF-8, or UTF-16 with a byte order mark. Spreadsheets often use
            "cp1252".

    Returns:
        Encoded examples, labels, and the raw texts or pairs of texts as ``display``. A missing cell is an empty text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no rows, a missing column, a cell that is not text, a missing, out-of-range or unknown label (the
            message names the row), or label names that cannot be matched to the model's classes.
    """
    file = absolute_path(file, "file")
    check_callable("processor", processor)
    if not isinstance(columns, Columns):
        raise TypeError(f"columns={columns!r} is a {type(columns).__name__}; pass Columns(text), with their names")
    start, limit = check_integer("start", start, 0), None if limit is None else check_integer("limit", limit)
    skip = {cell_text(label) for label in columns.skip}
    chosen: list[Row] = []
    other_labels: set[Any] = set()
    label = columns.label
    passed = itertools.count()
    for place, row in read_rows(file, [columns.text, columns.pair, columns.label], encoding):
        if label is not None and skip and cell_text(row[label]) in skip:
            continue
        number = next(passed)
        if number >= start and (limit is None or number < start + limit):
            chosen.append((place, row))
        elif label is not None and columns.label_names is None:
            if isinstance(row[label], str):  # sorted names must not depend on the rows read
                other_labels.add(row[label])
        elif number >= start:
            break
    if not chosen:
        raise ValueError(f"{file} has no examples" + (f" from number {start} on" if start else ""))
    texts, pairs = (
        None if name is None else [_text(row[name], f"{file}, {place}, column {name!r}") for place, row in chosen]
        for name in (columns.text, columns.pair)
    )
    labels, names = None, columns.label_names
    if label is not None:
        cells = [(place, row[label]) for place, row in chosen]
        labels, names = number_labels(cells, names, getattr(processor, "label_names", None), file, other_labels)
    display = texts if pairs is None else list(zip(texts or (), pairs))
    return Dataset(processor(texts or (), pairs), labels, display, names)


def read_snli(file: str | pathlib.Path, processor: Processor, *, limit: int | None = None, start: int = 0) -> Dataset:
    """Read SNLI or MNLI as distributed (``.jsonl`` or ``.txt``), or MNLI in GLUE's format (``.tsv``).

    Labels are numbered as the model's classes if those have these names, else as entailment, neutral, contradiction.
    Examples without agreement among annotators are left out.

    Args, Returns and Raises are those of `read_table`.
    """
    columns = Columns("sentence1", "sentence2", "gold_label", NLI_LABELS, skip=("-", ""))
    return read_table(file, processor, columns, limit=limit, start=start)


def read_qqp(file: str | pathlib.Path, processor: Processor, *, limit: int | None = None, start: int = 0) -> Dataset:
    """Read Quora question pairs in GLUE's format (``.tsv`` with question1, question2, is_duplicate).

    Args, Returns and Raises are those of `read_table`.
    """
    columns = Columns("question1", "question2", "is_duplicate", QQP_LABELS)
    return read_table(file, processor, columns, limit=limit, start=start)


def _text(cell: Any, place: str) -> str:
    """Return the text of a cell; a missing value (null or NaN) is an empty text."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, str | int | float):
        text = str(cell)
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"{place}: the text has half of a surrogate pair, which is no character; replace it")
        return text
    raise ValueError(f"{place} holds a {type(cell).__name__}; expected a text")


def read_rows(file: pathlib.Path, columns: Sequence[str | None], encoding: str | None = None) -> Iterator[Row]:
    """Yield the rows of a table: the location in the file, and a cell for each of ``columns`` that is not None."""
    wanted = [name for name in columns if name is not None]
    if is_saved_dataset(file):
        _check_columns(saved_columns(file), wanted, file)
        yield from saved_rows(file, wanted or saved_columns(file))
        return
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    if file.stat().st_size == 0:
        raise ValueError(f"{file} is empty")
    ending, opener = _format(file)
    if ending == ".parquet":
        yield from _parquet_rows(file, wanted)
        return
    try:
        with (
            opener(file, "rb") as stream,
            io.TextIOWrapper(stream, encoding=encoding or _encoding(opener, file), newline="") as text,
        ):
            rows = _json_rows if ending in (".jsonl", ".json") else _delimited_rows
            yield from rows(text, wanted, file, ending)
    except LookupError as error:
        if encoding is None:
            raise
        raise ValueError(f"encoding={encoding!r} is not known ({error}); expected one such as 'cp1252'") from error
    except (UnicodeError, csv.Error) as error:
        used = encoding or "UTF-8"
        older = "; pass its encoding, encoding='cp1252' (--encoding cp1252) or 'latin-1' for many older files"
        hint = "" if isinstance(error, csv.Error) else older
        raise ValueError(f"{file} cannot be read as a table in {used} ({error}){hint}") from error
    except _DAMAGE as error:
        raise ValueError(f"{file} is not a {file.suffix} file, or is damaged ({error})") from error


def column_names(file: str | pathlib.Path, encoding: str | None = None) -> list[str]:
    """Return the column names of a table, as found by `read_table`.

    Raises:
        FileNotFoundError, ValueError: as `read_table`.
    """
    file = absolute_path(file, "file")
    if is_saved_dataset(file):
        return saved_columns(file)
    if _format(file)[0] == ".parquet":
        with needs("a Parquet file"):
            import pyarrow.parquet
        try:
            return list(pyarrow.parquet.read_schema(file).names)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{file} is not a Parquet file, or is damaged ({error})") from error
    for _, row in read_rows(file, [], encoding):
        return list(row)
    raise ValueError(f"{file} has no examples")


def _format(file: pathlib.Path) -> tuple[str, Callable[..., Any]]:
    endings = [suffix.lower() for suffix in file.suffixes[-2:]]
    opener = _COMPRESSED.get(endings[-1] if endings else "", open)
    ending = endings[-1] if opener is open and endings else endings[0] if len(endings) == 2 else ""
    if ending not in TABLE_ENDINGS or (ending == ".parquet" and opener is not open):
        raise ValueError(
            f"{file} ends in {file.suffix!r}; expected .csv, .tsv, .txt, .jsonl or .parquet, or the text formats "
            "compressed, such as .csv.gz"
        )
    return ending, opener


def _encoding(opener: Callable[..., Any], file: pathlib.Path) -> str:
    with opener(file, "rb") as stream:
        start = stream.read(4)
    return "utf-16" if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _delimited_rows(stream: io.TextIOBase, wanted: Sequence[str], file: pathlib.Path, ending: str) -> Iterator[Row]:
    """Yield rows separated by commas or semicolons with quoting, or by tabs without.

    There is no quoting with tabs because texts in GLUE's files contain unbalanced quotation marks.
    """
    first = stream.readline()
    delimiter = _delimiter(first, wanted, "," if ending == ".csv" else "\t")
    unquoted = delimiter == "\t" and ending != ".csv"
    reader = csv.reader(
        itertools.chain([first], stream),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if unquoted else csv.QUOTE_MINIMAL,
        strict=True,
    )
    header = [name.strip() for name in next(reader, [])]
    _check_columns(header, wanted, file)
    place = {name: header.index(name) for name in wanted or header}
    rows = (cells for cells in _unlimited(reader) if cells)
    for number, cells in enumerate(rows, start=1):
        where = f"row {number}, line {reader.line_num}"
        if len(cells) <= max(place.values()) or any(cell.strip() for cell in cells[len(header) :]):
            remedy = "take tabs out of texts" if unquoted else "put texts in quotation marks"
            raise ValueError(f"{file}, {where}: {len(cells)} cells, the header has {len(header)}; {remedy}")
        yield where, {name: cells[i] for name, i in place.items()}


def _unlimited(reader: Any) -> Iterator[list[str]]:
    """Yield the rows of a CSV reader, with Python's global limit on the length of a cell raised meanwhile."""
    while True:
        usual = csv.field_size_limit(_LONGEST)
        try:
            row = next(reader, None)
        finally:
            csv.field_size_limit(usual)
        if row is None:
            return
        yield row


_LONGEST = 2**31 - 1
"""Maximum length of a cell in characters: the largest that the CSV reader accepts on all systems."""


def _delimiter(header: str, wanted: Sequence[str], usual: str) -> str:
    """Return the delimiter with which the header has the wanted columns, or the most columns; the usual one first."""
    best, most = usual, 1
    for delimiter in (usual, ",", ";", "\t", "|"):
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        if set(wanted) <= set(names) and len(names) > (0 if wanted else most):
            best, most = delimiter, len(names)
            if wanted:
                break
    return best


def _json_rows(stream: io.TextIOBase, wanted: Sequence[str], file: pathlib.Path, ending: str) -> Iterator[Row]:
    lines = ((line_number, line) for line_number, line in enumerate(stream, start=1) if line.strip())
    for number, (line_number, line) in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"{file}, line {line_number} is not JSON ({error}); expected one object per line"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {line_number} is a JSON {type(row).__name__}; expected one object per line")
        _check_columns(list(row), wanted, file, f", line {line_number}")
        yield f"row {number}, line {line_number}", row


def _parquet_rows(file: pathlib.Path, wanted: Sequence[str]) -> Iterator[Row]:
    with needs("a Parquet file"):
        import pyarrow.parquet
    try:
        table = pyarrow.parquet.ParquetFile(file)
        _check_columns(table.schema_arrow.names, wanted, file)
        rows = (row for batch in table.iter_batches(columns=list(wanted)) for row in batch.to_pylist())
        yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a Parquet file, or is damaged ({error})") from error


def _check_columns(found: Sequence[str], wanted: Sequence[str], file: pathlib.Path, where: str = "") -> None:
    absent = [name for name in wanted if name not in found]
    if absent:
        raise ValueError(f"{file}{where} has no column {absent[0]!r}; its columns are {listing(list(found), 20)}")
    twice = [name for name in wanted if list(found).count(name) > 1]
    if twice:
        raise ValueError(f"{file}{where} has {list(found).count(twice[0])} columns named {twice[0]!r}; rename one")
