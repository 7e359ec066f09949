"""`write_report`: write results as one self-contained HTML file."""

import base64
import dataclasses
import datetime
import hashlib
import importlib.resources
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from npeff_jax._extras import needs
from npeff_jax.evaluation import Audit, Collateral, Selectivity
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.pefs import Pefs
from npeff_jax.report._cards import Extras
from npeff_jax.report._collect import collect
from npeff_jax.report._component import Marks, Trace
from npeff_jax.report._data import About, ReportData, output_file
from npeff_jax.report._display import as_display
from npeff_jax.report._examples import Shown
from npeff_jax.report._json import dumps, valid_text
from npeff_jax.report._page import Page


def write_report(
    path: str | os.PathLike[str],
    decomposition: Decomposition,
    heldout: Pefs | None = None,
    fit: Any = None,
    selectivity: Selectivity | None = None,
    display: Any = None,
    **options: Any,
) -> Page:
    """Write a self-contained HTML report of a decomposition, which opens from disk and loads nothing else.

    Args:
        path: the file to write, such as ``report.html``; an existing file is replaced.
        decomposition: the decomposition to show.
        heldout: PEFs of the examples to show; without ``fit``, the PEFs that were decomposed.
        fit: coefficients of ``heldout``, from `fit_coefficients`.
        selectivity: result of `selectivity`, for all components or some.
        display: what to show of each example: an array of images, one text or several texts per example, `Images` or
            `Texts`.
        **options: ``model``, ``title``, ``class_names``, ``stability``, ``notes``, ``traces``, ``marks``, ``audit``,
            ``collateral``, ``about`` and ``shown``, as for `report_data`.

    Returns:
        The path written. A notebook displays it as the page; `report_data` gives its contents.

    Raises:
        OSError: If ``path`` is a folder, or lies below a file.
        TypeError: If an argument is of another type.
        ValueError: If the arguments do not belong together.
    """
    if isinstance(path, Decomposition) or not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"path is of type {type(path).__name__}; expected the file to write first, then the decomposition: "
            'write_report("report.html", decomposition)'
        )
    output_file(path)  # before any work
    return write_html(path, report_data(decomposition, heldout, fit, selectivity, display, **options))


def report_data(
    decomposition: Decomposition,
    heldout: Pefs | None = None,
    fit: Any = None,
    selectivity: Selectivity | None = None,
    display: Any = None,
    *,
    model: Model | None = None,
    title: str | None = None,
    class_names: Sequence[str] | None = None,
    stability: Any = None,
    notes: Sequence[str] | Mapping[Any, str] | None = None,
    traces: Sequence[Sequence[Trace]] | None = None,
    marks: Sequence[Sequence[Marks]] | None = None,
    audit: Audit | None = None,
    collateral: Collateral | None = None,
    about: About | None = None,
    shown: Shown | None = None,
) -> ReportData:
    """Collect all contents of a report as one versioned document.

    Args:
        decomposition: as for `write_report`.
        heldout: as for `write_report`.
        fit: as for `write_report`.
        selectivity: as for `write_report`.
        display: as for `write_report`.
        model: source of the output family and class names; by default a softmax over numbered classes.
        title: title of the page.
        class_names: names of the C classes, instead of those of ``model``.
        stability: (r,) or (runs, r), similarity of each component with its match in other runs, from
            `evaluation.compare_runs(decomposition, other).forward`.
        notes: one line per component, such as the concept of its top examples; or a mapping from component to line.
        traces: per component, traces of some top examples, from `report.trace_components`.
        marks: per component, attributions on some top examples, from `report.mark_examples`.
        audit: result of `audit`, for all components or some; it then decides the mark of evidence instead of
            ``selectivity``.
        collateral: result of `evaluation.collateral`: how far a change of the parameters moves each component's top
            examples.
        about: names of model and data, how they were split, and the command, for readers of the report.
        shown: how many examples a card shows.

    Raises:
        ValueError: If the arguments do not belong together.
    """
    check_belongs(decomposition, heldout, fit, selectivity, model, audit)
    r = decomposition.n_components
    coefficients = None if fit is None else np.asarray(fit.coefficients)
    n = len(decomposition.coefficients if coefficients is None else coefficients)
    display = as_display(display)
    if display is not None and len(display) != n:
        raise ValueError(f"display has {len(display)} entries, but {n} examples are shown; pass one for each of them")
    if selectivity is not None and max(selectivity.components) >= r:
        raise ValueError(
            f"selectivity has component {max(selectivity.components)}, but the decomposition has {r} components; "
            "measure it on this decomposition"
        )
    if audit is not None and max(audit.components) >= r:
        raise ValueError(
            f"audit has component {max(audit.components)}, but the decomposition has {r} components; audit this one"
        )
    _check_collateral(collateral, r)
    if isinstance(notes, Mapping):
        notes = _notes(notes, r)
    for name, value in (("notes", notes), ("traces", traces), ("marks", marks)):
        if value is not None and (isinstance(value, str) or len(value) != r):
            raise ValueError(f"{name} has {len(value)} entries; expected one for each of the {r} components")
    stability = _check_stability(stability, r)
    _check_choices(title, class_names, marks, traces, about, shown)
    if class_names is not None and len(class_names) != decomposition.schema.n_classes:
        raise ValueError(
            f"class_names has {len(class_names)} names, but the model has {decomposition.schema.n_classes} classes; "
            "pass one name per class"
        )
    title = title if title is not None else f"{r} components of {n:,} examples"
    extras = Extras(selectivity, stability, notes, traces, marks, audit, collateral)
    about = About() if about is None else about
    if not about.date:
        now = datetime.datetime.now(datetime.UTC).isoformat(" ", "minutes")
        about = dataclasses.replace(about, date=now.replace("+00:00", " UTC"))
    return collect(decomposition, heldout, fit, display, model, title, class_names, shown or Shown(), extras, about)


def write_html(path: str | os.PathLike[str], report: ReportData) -> Page:
    """Write existing report data as an HTML page, and return its path, which notebooks display as the page."""
    path = output_file(path)
    page = render(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(page, encoding="utf-8")
    beside.replace(path)  # atomic: the file appears complete or not at all
    return Page(path)


def check_belongs(decomposition: Any, heldout: Any, fit: Any, selectivity: Any, model: Any, audit: Any = None) -> None:
    """Check that results have the right types and belong to the same examples, components and model.

    Raises:
        TypeError, ValueError: If they do not.
    """
    _check_types(decomposition, heldout, fit, selectivity, model, audit)
    _check_examples(decomposition, heldout, None if fit is None else np.asarray(fit.coefficients))


def _check_types(decomposition: Any, heldout: Any, fit: Any, selectivity: Any, model: Any, audit: Any = None) -> None:
    wanted = (
        ("decomposition", decomposition, Decomposition, "from decompose or load_decomposition"),
        ("heldout", heldout, Pefs, "from compute_pefs or load_pefs"),
        ("selectivity", selectivity, Selectivity, "from selectivity"),
        ("model", model, Model, "what was explained"),
        ("audit", audit, Audit, "from audit"),
    )
    for name, value, kind, source in wanted:
        if not isinstance(value, kind) and (value is not None or kind is Decomposition):
            raise TypeError(f"{name} is of type {type(value).__name__}; expected a {kind.__name__}, {source}")
    if fit is not None and not hasattr(fit, "coefficients"):
        raise TypeError(f"fit is of type {type(fit).__name__}; expected the result of fit_coefficients")


def _check_choices(title: Any, class_names: Any, marks: Any, traces: Any, about: Any, shown: Any) -> None:
    for name, value, kind, expected in (
        ("title", title, str, "a text"),
        ("about", about, About, 'report.About(model="...", data="...")'),
        ("shown", shown, Shown, "report.Shown(top=16)"),
    ):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} is of type {type(value).__name__}; expected {expected}")
    if isinstance(class_names, str):
        raise TypeError(f"class_names={class_names!r} is one text; expected a list of names, one per class")
    for name, value, wanted in (("marks", marks, Marks), ("traces", traces, Trace)):
        entries = (
            [] if value is None else [one for own in value for one in (own if isinstance(own, list | tuple) else [own])]
        )
        strange = next((one for one in entries if not isinstance(one, wanted)), None)
        if strange is not None:
            source = "mark_examples" if wanted is Marks else "trace_components"
            raise TypeError(f"{name} holds a {type(strange).__name__}; expected the result of report.{source}")


def _check_collateral(collateral: Any, r: int) -> None:
    if collateral is None:
        return
    if not isinstance(collateral, Collateral):
        raise TypeError(
            f"collateral is of type {type(collateral).__name__}; expected a Collateral, from evaluation.collateral"
        )
    if len(collateral.measured) != r:
        raise ValueError(
            f"collateral has {len(collateral.measured)} components, but the decomposition has {r}; measure it on this "
            "decomposition"
        )


def _notes(notes: Mapping[Any, str], r: int) -> list[str]:
    numbered = {str(key): note for key, note in notes.items()}  # the page exports notes as JSON, whose keys are strings
    strange = [key for key in numbered if not (key.isdecimal() and int(key) < r)]
    if strange:
        raise ValueError(f"notes has the key {strange[0]!r}; expected numbers of components, 0 to {r - 1}")
    return [str(numbered.get(str(j), "")) for j in range(r)]


def _check_stability(stability: Any, r: int) -> np.ndarray | None:
    """Return the similarities as an array of shape (runs, r), with values from −1 to 1 and NaN where unknown.

    Raises:
        TypeError: If they are not numbers.
        ValueError: If the shape or a value is wrong.
    """
    if stability is None:
        return None
    expected = (
        f"expected ({r},) or (runs, {r}) similarities, from evaluation.compare_runs(decomposition, other).forward"
    )
    try:
        values = np.atleast_2d(np.asarray(stability, float))
    except (TypeError, ValueError):
        raise TypeError(f"stability is of type {type(stability).__name__}, no array of numbers; {expected}") from None
    if values.ndim != 2 or values.shape[1] != r or not len(values):
        raise ValueError(f"stability has shape {np.shape(stability)}; {expected}")
    if np.any(np.abs(values) > 1 + 1e-4):
        raise ValueError(f"stability has the value {np.nanmax(np.abs(values)):.3g}; {expected}, from 0 to 1")
    return values


def _check_examples(decomposition: Decomposition, heldout: Pefs | None, coefficients: np.ndarray | None) -> None:
    n = len(decomposition.coefficients)
    if coefficients is None:
        if heldout is not None and heldout.n_examples != n:
            raise ValueError(
                f"heldout has {heldout.n_examples} examples and no fit, but the decomposition has {n}; pass "
                "fit=fit_coefficients(decomposition, heldout)"
            )
        return
    if heldout is None:
        raise ValueError("got fit without heldout; pass the PEFs that these coefficients were fitted to")
    if coefficients.shape != (heldout.n_examples, decomposition.n_components):
        raise ValueError(
            f"fit has coefficients of shape {coefficients.shape}; heldout has {heldout.n_examples} examples and the "
            f"decomposition {decomposition.n_components} components"
        )


def render(report: ReportData) -> str:
    """Render the report as an HTML page.

    All data are escaped: by the template here, as text nodes in the page. A content security policy allows only the
    page's own script and style, by digest, so nothing else runs and nothing is loaded.
    """
    with needs("a report"):
        import jinja2

    assets = importlib.resources.files("npeff_jax.report") / "assets"
    scripts = sorted((file for file in assets.iterdir() if file.name.endswith(".js")), key=lambda file: file.name)
    code = '"use strict";\n' + "\n".join(file.read_text(encoding="utf-8") for file in scripts)
    script, style = f"(() => {{\n{code}\n}})();", (assets / "report.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((assets / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        title=valid_text(report.title),
        version=report.version,
        style=_markup(style),
        style_hash=_markup(_digest(style)),
        script=_markup(script),
        script_hash=_markup(_digest(script)),
        data=_markup(_inert(dumps(report.to_json()))),
    )


def _inert(text: str) -> str:
    """Escape JSON so that it can neither close its script element nor break a line of the script."""
    harmless = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}
    return text.translate(harmless)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _markup(text: str) -> str:
    """Mark trusted HTML, or text escaped by `_inert`, so that the template does not escape it again."""
    import markupsafe

    return markupsafe.Markup(text)
