"""``npeff demo files``: explain a published network for file types on the files of a folder."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import npeff_jax as npeff
import npeff_jax.report
from npeff_jax._extras import needs
from npeff_jax.cli._options import Show, progress_of


def files(
    folder: tyro.conf.Positional[Path | None] = None,
    out: Path = Path("npeff-files"),
    seed: int = 0,
    progress: Show = Show.BAR,
) -> None:
    """Explain a published network for file types on up to 1,500 of your files, in minutes.

    Needs "pip install --no-deps magika==1.0.3" for the weights. The report shows paths and the first and last lines of
    files.

    Args:
        folder: folder of files, searched recursively; by default that of this Python.
        out: directory for PEFs, the list of files and the report, report.html.
        seed: seed of the decomposition.
        progress: a bar, JSON lines, or none.
    """
    with needs("npeff demo files", "demo"):
        import jinja2  # noqa: F401  fail before the long work
    shown = progress_of(progress)
    preset = npeff.tasks.presets.FILES
    n_files = preset.n_examples + preset.n_heldout
    task = npeff.tasks.file_types(folder, n_files=n_files, heldout_share=preset.n_heldout / n_files)
    print(task)
    out.mkdir(parents=True, exist_ok=True)
    _list_files(out / "files.tsv", task)
    pefs, heldout = (
        npeff.compute_pefs(
            task.model,
            part.examples,
            preset.representation,
            labels=part.labels,
            keep=preset.keep,
            path=out / name,
            on_existing="resume",
            progress=shown,
        )
        for name, part in (("decomposed", task.decomposed), ("heldout", task.heldout))
    )
    print(_about_predictions(task, np.concatenate([pefs.logits, heldout.logits])))
    print(
        f"PEFs: the {preset.representation.max_rows} likeliest types have a row; the others had "
        f"{np.median(pefs.lost_trace):.1%} of the trace (median, estimated). Of what the rows hold, "
        f"{np.median(pefs.kept_energy):.1%} is kept"
    )
    n_components = min(preset.n_components, len(task.decomposed))
    decomposition, other = (npeff.decompose(pefs, n_components, seed=seed + run, progress=shown) for run in (0, 1))
    fit = npeff.fit_coefficients(decomposition, heldout)
    stability = npeff.evaluation.compare_runs(decomposition, other).forward
    print(
        f"decomposition: loss {decomposition.history.loss[-1]:.4f} of the PEFs' squared norm, {fit.loss:.4f} on "
        f"held-out files; median similarity with a run of another seed {np.median(stability):.3f}"
    )
    table = npeff.selectivity(
        task.model,
        decomposition,
        heldout,
        task.heldout.examples,
        fit=fit,
        n_top=min(16, len(task.heldout) // 2),
        # a pass over a file takes 14 ms of a core; measuring all moves on all files would take most of the demo's time
        nulls=npeff.Nulls(n_random_examples=64, n_random_directions=2, n_other_components=4),
        seed=seed,
        progress=shown,
    )
    print(repr(table))
    report = npeff.write_report(
        out / "report.html",
        decomposition,
        heldout=heldout,
        fit=fit,
        selectivity=table,
        display=npeff.report.Texts(task.heldout.display, ("file", "first lines", "last lines")),
        model=task.model,
        stability=stability,
        title="File types: a published network of 214 types",
    )
    print(f"look at {report.resolve()} (the files are listed in {out / 'files.tsv'})")


def _list_files(path: Path, task: npeff.tasks.FileTypes) -> None:
    """Write a list of files: their common digest, then one line per file with its set, path and type."""
    lines = [f"# {task.digest}"]
    for name, part in (("decomposed", task.decomposed), ("heldout", task.heldout)):
        lines += [f"{name}\t{shown[0]}" for shown in part.display]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _about_predictions(task: npeff.tasks.FileTypes, logits: np.ndarray) -> str:
    p = np.asarray(jax.vmap(task.model.output.probabilities)(jnp.asarray(logits)))
    return (
        f"network: {np.mean(p.argmax(1) == task.labels):.1%} of predictions are the type that the name stands for; "
        f"{np.mean(p.max(1) < 0.9):.1%} have a probability below 0.9"
    )
