"""Report data: everything a report shows, as one versioned JSON document.

The classes below are its schema: a field of theirs is a key of the document, a tuple a list, None null. The HTML, the
exports and other people's tools read the document; nothing reads the decomposition behind their back. Numbers that no
one can see differ are rounded to four digits, so that 512 components stay small.
"""

import dataclasses
import json
import math
import os
import types
import typing
from pathlib import Path
from typing import Any

FORMAT = "npeff-report"
VERSION = 1


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
        output: the model's output where that is no distribution over classes (a Gaussian model).
    """

    index: int
    predicted: tuple[tuple[int, float], ...]
    label: int | None = None
    text: tuple[str, ...] | None = None
    output: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples that components are shown by.

    Attributes:
        source: "held out", or "decomposed" if they are those that were decomposed.
        count: how many there are to choose from.
        shown: those that some component shows.
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
class Causal:
    """Is the component what the model uses? Ratios of the mean over its top examples to the mean over others.

    Attributes:
        kl_ratio: of the KL divergence that moving the parameters along the component causes.
        pef_norm_ratio: of the PEFs' norms, which alone makes some examples react more to anything.
        null_kl_ratio: of the KL divergence that *other* components' perturbations cause on the same examples.
    """

    kl_ratio: float | None
    pef_norm_ratio: float | None
    null_kl_ratio: float | None


@dataclasses.dataclass(frozen=True)
class Trace:
    """Where a perturbation along the component enters, and how it reaches the output, to first order.

    Attributes:
        example: position in the examples shown from.
        stages: names of the intermediate values, in the order of the computation.
        positions: tokens, or numbers of positions.
        change: for each stage and position, the relative change of the intermediate value, per unit of length.
        layers: the layers whose parameters were moved.
        classes: the classes most probable for the example.
        logits: for each layer and each of these classes, what the layer's parameters alone change of its logit, per
            unit of length; over layers they add up to the whole.
    """

    example: int
    stages: tuple[str, ...]
    positions: tuple[str, ...]
    change: tuple[tuple[float, ...], ...]
    layers: tuple[str, ...]
    classes: tuple[int, ...]
    logits: tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class Component:
    """One component's card.

    Attributes:
        index: its number.
        frozen: whether it was given rather than learned.
        share: its fraction of Σ W², how much of what was found it carries.
        breadth: fraction of examples whose coefficient is at least a tenth of its largest.
        top: (position in ``Examples.shown``, coefficient), largest coefficient first.
        random: likewise, drawn from all examples.
        near_misses: likewise, predicted like the top ones, yet with hardly any coefficient.
        n_mix: how many top examples the two mixes below are over.
        predicted_mix: (class, fraction) of the top examples it is predicted for, largest first.
        label_mix: (class, fraction) of the top examples it labels; None without labels.
        pair_mix: (class, class, fraction) of the top examples whose two likeliest classes these are, largest first, at
            most three; what a prediction's Fisher is mostly about. Empty for two classes.
        decay: at each of ``ReportData.decay_at``, the coefficient as a fraction of the largest, of the examples shown.
        decomposed_decay: likewise of the examples that were decomposed.
        places: its energy's share in each layer and kind; sums to 1.
        parameters: (name, share), the parameter arrays with most of its energy.
        neighbours: (component, similarity), the most similar ones.
        causal: is it what the model uses, if that was measured.
        stability: similarity with its match in other runs, from 0 to 1, the mean over runs, if given.
        note: what someone or something says of it, if given.
        traces: of some of its top examples, if made.
    """

    index: int
    frozen: bool
    share: float
    breadth: float
    top: tuple[tuple[int, float], ...]
    random: tuple[tuple[int, float], ...]
    near_misses: tuple[tuple[int, float], ...]
    n_mix: int
    predicted_mix: tuple[tuple[int, float], ...]
    label_mix: tuple[tuple[int, float], ...] | None
    pair_mix: tuple[tuple[int, int, float], ...]
    decay: tuple[float, ...]
    decomposed_decay: tuple[float, ...]
    places: tuple[tuple[float, ...], ...]
    parameters: tuple[tuple[str, float], ...]
    neighbours: tuple[tuple[int, float], ...]
    causal: Causal | None = None
    stability: float | None = None
    note: str = ""
    traces: tuple[Trace, ...] = ()


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
        selectivity_ceiling: the largest ratio that the selectivity of this many examples can reach.
        components: one card each.
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
    format: str = FORMAT
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """The document as JSON's own types. Numbers that are not finite become null."""
        return _plain(self)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the document, compact and in UTF-8."""
        path = Path(path)
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
        return _typed(cls, document, "report")


def read_report_data(path: str | os.PathLike[str]) -> ReportData:
    """Read what `ReportData.write` wrote.

    Raises:
        ValueError: as `ReportData.from_json`, or the file is not JSON.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); expected the data of a report") from None
    return ReportData.from_json(document)


def dumps(document: Any) -> str:
    """Compact JSON of a document's plain types."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value
    if hasattr(value, "item"):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return str(value)


def _typed(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the type of a field, recursively; the reverse of `_plain`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _typed(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        names = {field.name: field for field in dataclasses.fields(kind)}
        if not isinstance(value, dict) or set(value) != set(names):
            got = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise ValueError(f"{where} has {got}; expected the fields {sorted(names)}")
        hints = typing.get_type_hints(kind)
        return kind(**{name: _typed(hints[name], value[name], f"{where}.{name}") for name in names})
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} is {type(value).__name__}; expected a list")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_typed(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
        if len(value) != len(arguments):
            raise ValueError(f"{where} has {len(value)} entries; expected {len(arguments)}")
        return tuple(_typed(a, entry, f"{where}[{i}]") for i, (a, entry) in enumerate(zip(arguments, value)))
    if origin is dict:
        kind = dict
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is not Any and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise ValueError(f"{where} is {type(value).__name__}; expected {kind.__name__}")
    return value
