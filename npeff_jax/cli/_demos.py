"""The demos: from nothing to a report, with the figures that say how far to trust it."""

from pathlib import Path

import jax
import numpy as np

import npeff_jax as npeff
import npeff_jax.report
from npeff_jax._progress import Progress


def digits_demo(out: Path, *, seed: int = 0, progress: Progress = True) -> Path:
    """Explain a small convolutional network on handwritten digits, by both flavours.

    Args:
        out: directory for PEFs, decompositions and the two reports. PEFs that are there already are used again.
        seed: of training and decompositions.
        progress: a bar, a stream for JSON lines, or False.

    Returns:
        The report to look at.
    """
    out.mkdir(parents=True, exist_ok=True)
    digits = npeff.tasks.digits(seed=seed, progress=progress)
    print(f"network: {digits.train_accuracy:.1%} of training images right, {digits.heldout_accuracy:.1%} of held-out")
    written = [
        _explain_digits(digits, npeff.LowRank(), 2048, "LRM-NPEFF", out / "report.html", seed, progress),
        _explain_digits(digits, npeff.Diagonal(), 1024, "D-NPEFF", out / "report_diagonal.html", seed, progress),
    ]
    print(f"look at {written[0].resolve()} (and {written[1].name} beside it)")
    return written[0]


def _explain_digits(
    digits: npeff.tasks.Digits,
    representation: npeff.LowRank | npeff.Diagonal,
    keep: int,
    name: str,
    report: Path,
    seed: int,
    progress: Progress,
) -> Path:
    model, flavour = digits.model, type(representation).__name__
    pefs, heldout = (
        npeff.compute_pefs(
            model,
            images,
            representation,
            labels=labels,
            keep=keep,
            path=report.with_name(f"{flavour.lower()}_{part}"),
            on_existing="resume",
            progress=progress,
        )
        for part, images, labels in (
            ("decomposed", digits.train_images, digits.train_labels),
            ("heldout", digits.heldout_images, digits.heldout_labels),
        )
    )
    decomposition, other = (npeff.decompose(pefs, 24, seed=seed + run, progress=progress) for run in (0, 1))
    fit = npeff.fit_coefficients(decomposition, heldout)
    stability = npeff.evaluation.compare_runs(decomposition, other).forward
    print(
        f"{name}: {np.median(pefs.kept_energy):.1%} of the PEFs' trace kept (median); loss "
        f"{decomposition.history.loss[-1]:.4f} of their squared norm, {fit.loss:.4f} on held-out images "
        f"(fitted to a KKT residual of {fit.kkt_residual.max():.1e}); median similarity "
        f"with a run of another seed {np.median(stability):.3f}"
    )
    table = npeff.selectivity(
        model, decomposition, heldout, digits.heldout_images, fit=fit, n_top=16, norm=0.1, seed=seed, progress=progress
    )
    print(repr(table))
    return npeff.write_report(
        report,
        decomposition,
        heldout=heldout,
        fit=fit,
        selectivity=table,
        display=digits.heldout_images,
        model=model,
        stability=stability,
        title=f"Digits: a small convolutional network, {name}",
    )


def tracr_demo(out: Path, *, seed: int = 0, progress: Progress = True) -> Path:
    """Explain a transformer compiled from a program, where the truth is known.

    Args:
        out: directory for PEFs and the report.
        seed: of examples and decomposition.
        progress: a bar, a stream for JSON lines, or False.

    Returns:
        The report to look at.
    """
    out.mkdir(parents=True, exist_ok=True)
    task = npeff.tasks.inference(n_examples=1000, seed=seed)
    model = task.model
    right = np.argmax(jax.jit(jax.vmap(model.logits_fn, (None, 0)))(model.params, task.examples), axis=1) == task.labels
    print(f"program: {model.space.size:,} parameters, {right.mean():.1%} of {len(right)} sentence pairs right")
    pefs = npeff.compute_pefs(
        model,
        task.examples,
        npeff.LowRank(),
        labels=task.labels,
        keep=8192,
        path=out / "pefs",
        on_existing="resume",
        progress=progress,
    )
    decomposition = npeff.decompose(pefs, 32, seed=seed, progress=progress)
    print(
        f"{np.median(pefs.kept_energy):.1%} of the PEFs' trace kept (median); loss "
        f"{decomposition.history.loss[-1]:.4f} of their squared norm"
    )
    found = npeff.evaluation.search_concepts(decomposition.coefficients, task.concepts, n_top=16, seed=seed)
    print(found)
    table = npeff.selectivity(
        model,
        decomposition,
        pefs,
        task.examples,
        fit=decomposition,
        n_top=16,
        norm=npeff.KLBudget(),  # a program's weights sit on kinks: a norm of 0.1 destroys it
        seed=seed,
        progress=progress,
    )
    print(repr(table))
    traces = npeff.report.trace_components(
        model, decomposition, decomposition.coefficients, task.examples, positions=task.tokens, progress=progress
    )
    report = npeff.write_report(
        out / "report.html",
        decomposition,
        heldout=pefs,
        selectivity=table,
        display=npeff.report.Texts(task.texts, ("premise", "hypothesis")),
        model=model,
        notes=[found.note(j) for j in range(decomposition.n_components)],
        traces=traces,
        title="A compiled program for natural-language inference",
    )
    print(f"look at {report.resolve()}")
    return report
