"""Commands that show: ``npeff report`` and ``npeff export``."""

from pathlib import Path

from npeff_jax.cli._record import load_arrays, stage
from npeff_jax.cli._source import load_examples, load_model


@stage
def report(
    decomposition: Path,
    out: Path,
    pefs: Path | None = None,
    fit: Path | None = None,
    selectivity: Path | None = None,
    examples: str | None = None,
    model: str | None = None,
    part: str | None = None,
    title: str | None = None,
    data: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write one self-contained HTML file to look at and to send to colleagues.

    Args:
        decomposition: what "npeff decompose" or "npeff expand" wrote.
        out: the .html file to write.
        pefs: PEFs of the examples to show. Without a fit, those that were decomposed.
        fit: their coefficients, from "npeff fit".
        selectivity: what "npeff perturb" wrote.
        examples: what to show of each example: as for "npeff pefs"; its display if it has one, else the examples
            themselves, which then are images.
        model: for the names of its classes, as for "npeff pefs".
        part: as for "npeff pefs".
        title: of the page.
        data: also write the report's data, as JSON for other tools, to this file.
        overwrite: replace what is there.
    """
    import npeff_jax
    from npeff_jax.report import report_data, write_html

    found = None if examples is None else load_examples(examples, part)
    collected = report_data(
        npeff_jax.load_decomposition(decomposition),
        None if pefs is None else npeff_jax.load_pefs(pefs),
        None if fit is None else load_arrays(fit, npeff_jax.Fit),
        None if selectivity is None else load_arrays(selectivity, npeff_jax.Selectivity),
        None if found is None else (found.examples if found.display is None else found.display),
        model=None if model is None else load_model(model),
        title=title,
    )
    write_html(out, collected)
    if data is not None:
        collected.write(data)


@stage
def export(data: Path, out: Path, n_top: int = 16, overwrite: bool = False) -> None:
    """Write the components' top examples as a table: .csv, .parquet or .tex by the file's ending.

    Args:
        data: report data, from "npeff report --data".
        out: the file to write.
        n_top: examples of each component at most; a report holds 16 unless it was told otherwise.
        overwrite: replace what is there.
    """
    from npeff_jax.report import read_report_data, write_table

    write_table(out, read_report_data(data), n_top)
