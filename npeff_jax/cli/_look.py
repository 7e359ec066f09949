"""``npeff report``, ``npeff export`` and ``npeff bundle``: write results for readers."""

import dataclasses
from pathlib import Path

import numpy as np

from npeff_jax.cli._language import Question, load_question
from npeff_jax.cli._options import Flag, MaybePath, MaybeText, Paths
from npeff_jax.cli._record import load_arrays, stage
from npeff_jax.cli._source import Reading, load_examples, load_model
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model, is_language_model
from npeff_jax.report import output_file
from npeff_jax.tasks import Dataset


@stage
def report(
    decomposition: Path,
    out: Path,
    pefs: MaybePath = None,
    fit: MaybePath = None,
    selectivity: MaybePath = None,
    examples: MaybeText = None,
    model: MaybeText = None,
    part: MaybeText = None,
    text_column: MaybeText = None,
    pair_column: MaybeText = None,
    others: Paths = (),
    traces: Flag = False,
    title: MaybeText = None,
    data: MaybePath = None,
    overwrite: Flag = False,
) -> None:
    """Write the report as one self-contained HTML file, to view or to send to colleagues.

    Args:
        decomposition: components, from "npeff decompose" or "npeff expand".
        out: the .html file to write.
        pefs: PEFs of the examples to show; without a fit, those that were decomposed.
        fit: coefficients of these examples, from "npeff fit".
        selectivity: result of "npeff perturb".
        examples: examples to show, as for "npeff pefs": their display if any, else the examples, which must be images.
        model: model for the names of its classes, as for "npeff pefs".
        part: as for "npeff pefs".
        text_column: as for "npeff pefs".
        pair_column: as for "npeff pefs".
        others: decompositions of the same PEFs with other seeds, to report the stability of each component.
        traces: show the effect of a move along each component on intermediate values, for its first top example. Needs
            --model, --examples and a model that exposes its intermediate values.
        title: title of the page.
        data: also write the report's data to this file, as JSON for other tools.
        overwrite: replace existing results.
    """
    import npeff_jax
    from npeff_jax.report import report_data, trace_components, write_html

    if traces and (model is None or examples is None):
        raise ValueError("--traces needs --model and --examples; pass both")
    output_file(out)  # before any work
    components = npeff_jax.load_decomposition(decomposition)
    fitted = None if fit is None else load_arrays(fit, npeff_jax.CoefficientFit)
    reading = Reading(text_column, pair_column)
    found = None if examples is None else load_examples(examples, part, model=model, reading=reading, progress=True)
    explained = None if model is None else _model(model, found)
    runs = [npeff_jax.compare_runs(components, npeff_jax.load_decomposition(other)).forward for other in others]
    coefficients = components.coefficients if fitted is None else fitted.coefficients
    traced = None
    if traces and explained is not None and found is not None:
        traced = trace_components(_as_decomposed(explained, components), components, coefficients, found.examples)
    collected = report_data(
        components,
        None if pefs is None else npeff_jax.load_pefs(pefs),
        fitted,
        None if selectivity is None else load_arrays(selectivity, npeff_jax.Selectivity),
        None if found is None else (found.examples if found.display is None else found.display),
        model=explained,
        title=title,
        stability=np.array(runs) if runs else None,
        traces=traced,
    )
    write_html(out, collected)
    if data is not None:
        collected.write(data)


def _model(name: str, found: Dataset | None) -> Model:
    if not is_language_model(name):
        return load_model(name)
    return load_question(name, (), Question(), None if found is None else found.examples)


def _as_decomposed(model: Model, components: Decomposition) -> Model:
    """Return the model with the parameter mask that the components were computed with."""
    parameters = components.schema.layout.parameters
    names = {name for parameter in parameters for name in (parameter.name, *parameter.aliases)}
    return dataclasses.replace(model, mask=lambda name, _: name in names)


@stage
def export(data: Path, out: Path, n_top: int = 16, overwrite: Flag = False) -> None:
    """Write the components' top examples as a table: .csv, .parquet or .tex by the file's ending.

    Args:
        data: report data, from "npeff report --data".
        out: the file to write.
        n_top: maximum number of examples per component; by default a report holds 16.
        overwrite: replace existing results.
    """
    from npeff_jax.report import read_report_data, write_table

    write_table(out, read_report_data(data), n_top)


@stage
def bundle(
    decomposition: Path,
    data: Path,
    out: Path,
    model_name: str = "",
    examples_name: str = "",
    license: str = "",
    push: MaybeText = None,
    public: Flag = False,
    overwrite: Flag = False,
) -> None:
    """Write a decomposition, its report, settings and a model card to one folder, to send or to push to the hub.

    Args:
        decomposition: components, from "npeff decompose" or "npeff expand".
        data: report data, from "npeff report --data", or report.json of "npeff explain".
        out: the folder to create.
        model_name: name of the explained model, for the card.
        examples_name: name of the data set, for the card.
        license: license of the result, as named on the hub.
        push: also upload it to the Hugging Face hub, under this name, user/name.
        public: make a newly created repository public.
        overwrite: replace existing results.
    """
    import npeff_jax
    from npeff_jax.report import push_to_hub, read_report_data, save_pretrained

    components = npeff_jax.load_decomposition(decomposition)
    named = {"model_name": model_name, "examples_name": examples_name, "license": license}
    folder = save_pretrained(out, components, read_report_data(data), **named)
    if push is not None:
        print(push_to_hub(folder, push, private=not public))
