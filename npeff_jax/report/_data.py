"""Report data: the contents of a report as one versioned JSON document.

The classes below are its schema: their fields are the keys of the document, tuples are lists, None is null. The HTML
page and the exports read this document only. Numbers are rounded to four significant digits, which keeps a report of
512 components small. `json_schema` gives the schema as JSON Schema.
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
"""Version of the schema. 4 added audits, evidence, coherence and marks per component, the table of all examples and
`About`; 3 added headlines; 2 added base rates of class pairs, words, wrong predictions and null exceedances."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Settings, sizes and loss history of the decomposition.

    Attributes:
        flavour: "low_rank" or "diagonal".
        n_components: r.
        n_frozen: frozen components (given, not learned); they come first.
        n_decomposed: n, examples whose PEFs were decomposed.
        n_classes: C.
        n_parameters: m, parameters explained.
        n_kept_parameters: m', parameters that at least one component uses.
        model: fingerprint of the model's parameters.
        settings: settings recorded with the decomposition.
        pefs: settings of the PEFs: representation, normalization, keep, dtype, precision.
        stopped: why the iterations ended.
        steps: iteration of each loss.
        losses: squared norm of the residual, as a fraction of the PEFs' squared norm.
        seconds: seconds since the start, at each loss.
        code_version: version of the package that wrote the document.
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
    """A histogram; ``counts`` is one shorter than ``edges``."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A sprite sheet: images of one size, tiled row by row in a single picture.

    Attributes:
        url: the picture as a ``data:`` URL.
        columns: images per row.
        width: width of one image in pixels.
        height: height of one image in pixels.
        count: number of images.
    """

    url: str
    columns: int
    width: int
    height: int
    count: int


@dataclasses.dataclass(frozen=True)
class Example:
    """An example on at least one component's card.

    Attributes:
        index: position among the examples that the report chooses from.
        predicted: (class, probability), most probable first, at most three.
        label: label in the data set, if there are labels.
        text: segments of the text, if shown as text.
        output: output of the model, if it is not a distribution over classes (the mean of a Gaussian model, the
            log-probabilities of sampled answers).
    """

    index: int
    predicted: tuple[tuple[int, float], ...]
    label: int | None = None
    text: tuple[str, ...] | None = None
    output: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class ExampleTable:
    """Columns over all examples, one entry per example.

    Attributes:
        index: positions of the examples; above 20,000 examples, only those on a card.
        predicted: the likeliest class; empty without classes.
        probability: probability of the predicted class; empty without classes.
        label: labels of the data set; empty without labels.
        explained: 1 − ‖F_i − Σ_j W_ij H_j‖² / ‖F_i‖²; empty if the coefficients were not fitted.
        components: components with the largest coefficients, largest first.
        coefficients: coefficients of these components.
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
    """Descriptions for readers of a report; each may be empty.

    Attributes:
        model: name of the model.
        data: name of the data set.
        split: how the examples were divided.
        date: date of the report.
        command: command that wrote it.
    """

    model: str = ""
    data: str = ""
    split: str = ""
    date: str = ""
    command: str = ""


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples that the cards of a report are chosen from.

    Attributes:
        source: "held out", or "decomposed" if these are the examples that were decomposed.
        count: number of examples to choose from.
        shown: examples on at least one card.
        table: all examples, as columns.
        image_sheets: pictures of ``shown``, in the same order, if the examples are images.
        segment_names: names of the segments of a text.
        predicted_rate: per class, the fraction of all examples predicted as that class.
        label_rate: per class, the fraction of all examples with that label; None without labels.
        accuracy: fraction of examples whose prediction equals the label; None without labels.
        explained: fraction of the PEFs' squared norm that the components reproduce, if the coefficients were fitted.
        kept_energy: histogram of the fraction of the trace that the kept entries of each PEF hold.
        fisher_error: histogram of the relative Frobenius errors of the sparsified PEFs.
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
        layers: names of the rows.
        kinds: names of the columns.
        sizes: number of explained parameters per cell.
        mean: share of the energy per cell, averaged over components.
    """

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    sizes: tuple[tuple[float, ...], ...]
    mean: tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class ReportData:
    """The document: all contents of a report.

    Attributes:
        title: title of the report.
        run: the decomposition.
        class_names: C names, or numbers.
        examples: the examples shown.
        coefficients: histogram of log10 of the positive coefficients.
        zero_coefficients: fraction of coefficients that are zero.
        decay_at: ranks at which decays are given, as fractions of the examples.
        places: the rows and columns of "where it lives".
        map: (x, y) per component; similar components are close to each other.
        selectivity_ceiling: largest KL ratio that is possible if the top examples also count among the others, as in
            the paper. Here they do not, so ratios can be larger.
        components: the cards, one per component.
        about: what the report is about.
        moved_all: mean KL divergence of all examples under the change of parameters that `Component.moved` is about.
        format: always "npeff-report".
        version: version of this schema.
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
        """Return the document as dicts, lists and numbers, ready for JSON; non-finite numbers become None."""
        return to_plain(self)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the document as compact JSON in UTF-8, and return its path."""
        path = output_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dumps(self.to_json()), encoding="utf-8")
        return path

    @classmethod
    def from_json(cls, document: Any) -> "ReportData":
        """Build report data from a JSON document, checking every field.

        Raises:
            ValueError: If the document is not report data, has another version, or a field is missing or mistyped.
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
    """Return ``path`` with ``~`` expanded, after checking that a file can be written there.

    Raises:
        OSError: If ``path`` is a folder, lies below a file, or is a URL.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):  # Path collapses "//" to "/"
        raise OSError(f"{path} is a URL; expected a file on this machine. Copy the file there afterwards")
    path = absolute_path(path)
    if path.is_dir() or not path.name:
        raise IsADirectoryError(f"{path} is a folder; expected the file to write, such as {path / 'report.html'}")
    above = next((folder for folder in path.parents if folder.exists()), path.parent)
    if above.exists() and not above.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {above} is a file, not a folder")
    return path


def read_report_data(path: str | os.PathLike[str]) -> ReportData:
    """Read report data that `ReportData.write` wrote.

    Raises:
        ValueError: As `ReportData.from_json`, or if the file is not JSON.
    """
    file = absolute_path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; expected what ReportData.write wrote")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise ValueError(f"{path} is not JSON ({error}); expected the data of a report") from None
    return ReportData.from_json(document)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the document."""
    return json_schema_of(ReportData) | {"title": f"{FORMAT}, version {VERSION}"}
