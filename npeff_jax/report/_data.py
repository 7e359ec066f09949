"""Report data: everything a report shows, as one versioned JSON document.

The classes below are its schema: a field of theirs is a key of the document, a tuple a list, None null. The HTML, the
exports and other people's tools read the document; nothing reads the decomposition behind their back. Numbers that no
one can see differ are rounded to four digits, so that 512 components stay small. `json_schema` says the same in the
language of JSON Schema.
"""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

from npeff_jax.report._component import Component
from npeff_jax.report._json import dumps, from_plain, json_schema_of, to_plain
from npeff_jax.store import absolute_path

FORMAT = "npeff-report"
VERSION = 5
"""4: the audit of each component, its evidence, coherence and marked parts, a table of all examples, what the report is
about. 3: a headline for each component. 2: base rates of pairs of classes, words of top texts, wrong predictions, how
many components exceed a ratio."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What was decomposed, and how it went.

    Attributes:
        flavour: "low_rank" or "diagonal".
        n_components: r.
        n_frozen: components that were given, not learned; they come first.
        n_decomposed: n, examples whose PEFs were decomposed.
        n_classes: C.
        n_parameters: m, parameters explained.
        n_kept_parameters: m', of which at least one component uses.
        model: fingerprint of its parameters.
        settings: of the decomposition, as recorded with it.
        pefs: how the PEFs were made: representation, normalization, keep, dtype, precision.
        stopped: why the iterations ended.
        steps: iteration of each loss.
        losses: squared norm of what is left, as a fraction of the PEFs' squared norm.
        seconds: at each loss, since the start.
        code_version: of the package that wrote this.
    """

    flavour: str
    n_components: int
    n_frozen: int
    n_decomposed: int
    n_classes: int
    n_parameters: int
    n_kept_parameters: int
    model: str
    settings: dict[str, Any]
    pefs: dict[str, Any]
    stopped: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    seconds: tuple[float, ...]
    code_version: str


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts between edges; ``counts`` is one shorter than ``edges``."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Many images of one size as one picture: row by row, ``columns`` in a row.

    Attributes:
        url: the picture, a ``data:`` URL.
        columns: images in a row.
        width: of one image, in pixels.
        height: of one image, in pixels.
        count: images in it.
    """

    url: str
    columns: int
    width: int
    height: int
    count: int


@dataclasses.dataclass(frozen=True)
class Example:
    """An example that some component shows.

    Attributes:
        index: its position in the set of examples shown from.
        predicted: (class, probability), most probable first, at most three.
        label: of the data set, if there are labels.
        text: its segments, where it is shown as text.
        output: the model's output where that is no distribution over classes (a Gaussian model, log-probabilities of
            drawn answers).
    """

    index: int
    predicted: tuple[tuple[int, float], ...]
    label: int | None = None
    text: tuple[str, ...] | None = None
    output: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class ExampleTable:
    """Every example in columns, an entry per example: what a component-wise view leaves out.

    Attributes:
        index: positions in the set of examples shown from; all of them, or those shown where there are very many.
        predicted: the likeliest class; empty without classes.
        probability: of that class; empty without classes.
        label: of the data set; empty without labels.
        explained: 1 − ‖F_i − Σ_j W_ij H_j‖² / ‖F_i‖²; empty where the coefficients were not fitted.
        components: the components with the largest coefficients, largest first.
        coefficients: theirs.
    """

    index: tuple[int, ...]
    predicted: tuple[int, ...]
    probability: tuple[float | None, ...]
    label: tuple[int, ...]
    explained: tuple[float | None, ...]
    components: tuple[tuple[int, ...], ...]
    coefficients: tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class About:
    """What a report is about, in words for its readers; each may be empty.

    Attributes:
        model: name of the model.
        data: name of the data set.
        split: how the examples were divided.
        date: when it was made.
        command: what made it.
    """

    model: str = ""
    data: str = ""
    split: str = ""
    date: str = ""
    command: str = ""


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples that components are shown by.

    Attributes:
        source: "held out", or "decomposed" if they are those that were decomposed.
        count: how many there are to choose from.
        shown: those that some component shows.
        table: all of them, in columns.
        image_sheets: pictures of ``shown``, in its order, where examples are images.
        segment_names: names of the segments of a text.
        predicted_rate: for each class, the fraction of all examples it is predicted for.
        label_rate: for each class, the fraction of all examples it labels; None without labels.
        accuracy: fraction predicted as labelled; None without labels.
        explained: fraction of their PEFs' squared norm that the components reproduce, if they were fitted.
        kept_energy: fractions of the PEFs' trace that their kept entries hold.
        fisher_error: relative Frobenius errors of the sparsified PEFs.
    """

    source: str
    count: int
    shown: tuple[Example, ...]
    table: ExampleTable
    image_sheets: tuple[Sheet, ...]
    segment_names: tuple[str, ...]
    predicted_rate: tuple[float, ...]
    label_rate: tuple[float, ...] | None
    accuracy: float | None
    explained: float | None
    kept_energy: Histogram | None
    fisher_error: Histogram | None


@dataclasses.dataclass(frozen=True)
class Places:
    """The table "where it lives".

    Attributes:
        layers: its rows.
        kinds: its columns.
        sizes: explained parameters of each cell.
        mean: the mean over components of their shares.
    """

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    sizes: tuple[tuple[float, ...], ...]
    mean: tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class ReportData:
    """The document.

    Attributes:
        title: of the report.
        run: what was decomposed.
        class_names: C names, or numbers.
        examples: those that are shown.
        coefficients: histogram of log10 of the positive coefficients.
        zero_coefficients: fraction of coefficients that are zero.
        decay_at: ranks at which decays are given, as fractions of the examples.
        places: the rows and columns of "where it lives".
        map: for each component (x, y), similar ones close to each other.
        selectivity_ceiling: the largest ratio there could be if top examples counted among the others too, as in the
            paper. Here they do not, and ratios can be larger.
        components: one card each.
        about: what the report is about.
        moved_all: mean KL divergence of all examples under the move that ``moved`` of components is about, if given.
        format: always "npeff-report".
        version: of this schema.
    """

    title: str
    run: Run
    class_names: tuple[str, ...]
    examples: Examples
    coefficients: Histogram
    zero_coefficients: float
    decay_at: tuple[float, ...]
    places: Places
    map: tuple[tuple[float, float], ...]
    selectivity_ceiling: float | None
    components: tuple[Component, ...]
    about: About = About()
    moved_all: float | None = None
    format: str = FORMAT
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """The document as JSON's own types. Numbers that are not finite become null."""
        return to_plain(self)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the document, compact and in UTF-8."""
        path = output_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dumps(self.to_json()), encoding="utf-8")
        return path

    @classmethod
    def from_json(cls, document: Any) -> "ReportData":
        """The data of a document, every field of it checked.

        Raises:
            ValueError: it is no report, is of another version, or a field is missing or of another type.
        """
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f'this is not report data; expected a JSON object with "format": "{FORMAT}"')
        if document.get("version") != VERSION:
            raise ValueError(
                f"report data of version {document.get('version')}; this package reads version {VERSION}. Write the "
                "report again from its decomposition"
            )
        return from_plain(cls, document, "report")


def output_file(path: str | os.PathLike[str]) -> Path:
    """``path`` as a file that can be written, ``~`` expanded.

    Raises:
        OSError: it is a folder, stands below a file, or is an address.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):  # a Path has made one slash of the two
        raise OSError(f"{path} is an address; expected a file on this machine, copy it there afterwards")
    path = absolute_path(path)
    if path.is_dir() or not path.name:
        raise IsADirectoryError(f"{path} is a folder; expected the file to write, such as {path / 'report.html'}")
    above = next((folder for folder in path.parents if folder.exists()), path.parent)
    if above.exists() and not above.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {above} is a file, not a folder")
    return path


def read_report_data(path: str | os.PathLike[str]) -> ReportData:
    """Read what `ReportData.write` wrote.

    Raises:
        ValueError: as `ReportData.from_json`, or the file is not JSON.
    """
    file = absolute_path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; expected what ReportData.write wrote")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # what is no JSON, and what is no UTF-8
        raise ValueError(f"{path} is not JSON ({error}); expected the data of a report") from None
    return ReportData.from_json(document)


def json_schema() -> dict[str, Any]:
    """The document's JSON Schema, for tools that are not written in Python."""
    return json_schema_of(ReportData) | {"title": f"{FORMAT}, version {VERSION}"}
