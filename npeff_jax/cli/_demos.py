"""``npeff demo``: complete examples from a model to a report, with selectivity and audit."""

from pathlib import Path

import jax
import numpy as np

import npeff_jax as npeff
import npeff_jax.report
from npeff_jax._extras import needs
from npeff_jax._progress import Progress
from npeff_jax.cli._options import Show, progress_of


def digits(out: Path = Path("npeff-digits"), seed: int = 0, progress: Show = Show.BAR) -> None:
    """Explain a small convolutional network on scikit-learn's handwritten digits, by both flavours, in minutes.

    Args:
        out: directory for PEFs and the two reports; report.html is the result. Existing PEFs are reused.
        seed: seed of training and decompositions.
        progress: a bar, JSON lines, or none.
    """
    with needs("npeff demo digits", "demo"):
        import jinja2  # noqa: F401  fail before the long work
    out.mkdir(parents=True, exist_ok=True)
    shown = progress_of(progress)
    trained = npeff.tasks.digits(seed=seed, progress=shown)
    print(f"network: {trained.train_accuracy:.1%} of training images right, {trained.heldout_accuracy:.1%} of held-out")
    written = [
        _explain_digits(trained, npeff.LowRank(), 2048, "LRM-NPEFF", out / "report.html", seed, shown),
        _explain_digits(trained, npeff.Diagonal(), 1024, "D-NPEFF", out / "report_diagonal.html", seed, shown),
    ]
    print(f"look at {written[0].resolve()} (and {written[1].name} beside it)")


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
    found = npeff.report.report_data(
        decomposition,
        heldout=heldout,
        fit=fit,
        selectivity=table,
        display=digits.heldout_images,
        model=model,
        stability=stability,
        title=f"Digits: a small convolutional network, {name}",
    )
    if isinstance(representation, npeff.LowRank):
        _draw(report.with_name("picture.svg"), found, digits.heldout_images, fit.coefficients)
    return npeff.report.write_html(report, found)


def _draw(path: Path, found: npeff.report.ReportData, images: np.ndarray, coefficients: np.ndarray) -> None:
    """Draw the eight largest components for the README, each with top images, headline and KL ratio."""
    with needs("the picture of a demo"):
        import matplotlib as mpl
    listed = sorted(found.components, key=lambda component: -component.share)[:8]
    texts = []
    for component in listed:
        ratio = None if component.causal is None else component.causal.kl_ratio
        texts.append(component.headline + ("" if ratio is None else f"\nKL ratio {ratio:.1f}"))
    # Text stays text and nothing depends on the run, so that diffs of the file are small.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "npeff", "font.family": "sans-serif"}):
        figure = npeff.report.collage_figure(images, coefficients, [c.index for c in listed], texts=texts)
        figure.savefig(path, metadata={"Date": None}, dpi=48)


def tracr(out: Path = Path("npeff-tracr"), seed: int = 0, progress: Show = Show.BAR) -> None:
    """Explain a transformer compiled from a program, whose computation is known.

    Args:
        out: directory for PEFs and the report; report.html is the result. Existing PEFs are reused.
        seed: seed of examples and decomposition.
        progress: a bar, JSON lines, or none.
    """
    with needs("npeff demo tracr", "demo"):
        import jinja2  # noqa: F401  fail before the long work
    shown = progress_of(progress)
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
        progress=shown,
    )
    decomposition = npeff.decompose(pefs, 32, seed=seed, progress=shown)
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
        norm=npeff.KLBudget(1e-6),  # its weights lie on ReLU kinks: even 1e-4 nats is not local
        seed=seed,
        progress=shown,
    )
    print(repr(table))
    traces = npeff.report.trace_components(
        model, decomposition, decomposition.coefficients, task.examples, positions=task.tokens, progress=shown
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


def shortcut(out: Path = Path("npeff-shortcut"), seed: int = 0, progress: Show = Show.BAR) -> None:
    """Explain a transformer trained with a planted flaw: words that two sentences share mislead it.

    Args:
        out: directory for PEFs and the report; report.html is the result. Existing PEFs are reused.
        seed: seed of training and decomposition.
        progress: a bar, JSON lines, or none.
    """
    with needs("npeff demo shortcut", "demo"):
        import jinja2  # noqa: F401  fail before the long work
    shown = progress_of(progress)
    out.mkdir(parents=True, exist_ok=True)
    task = npeff.tasks.shortcut(n_heldout=1500, seed=seed, progress=shown)
    pefs, heldout = (
        npeff.compute_pefs(
            task.model,
            task.heldout.subset(rows).examples,
            npeff.LowRank(),
            labels=task.heldout.labels[rows],
            keep=2048,
            path=out / name,
            on_existing="resume",
            progress=shown,
        )
        for name, rows in (("decomposed", slice(1000)), ("heldout", slice(1000, None)))
    )
    rest, misled = task.heldout.subset(slice(1000, None)), task.misled[1000:]
    wrong = heldout.logits.argmax(1) != rest.labels
    print(f"network: {wrong[~misled].mean():.1%} wrong, {wrong[misled].mean():.1%} where a shared word misleads")
    decomposition = npeff.decompose(pefs, 32, seed=seed, progress=shown)
    fit = npeff.fit_coefficients(decomposition, heldout)
    found = npeff.evaluation.search_concepts(fit.coefficients, {"misled by a shared word": misled & wrong}, seed=seed)
    most = int(np.argmax(found.share[np.arange(len(found.best)), found.best]))
    print(f"component {most}: {found.note(most)}")
    table = npeff.selectivity(
        task.model, decomposition, heldout, rest.examples, fit=fit, n_top=16, norm=0.1, seed=seed, progress=shown
    )
    print(repr(table))
    report = npeff.write_report(
        out / "report.html",
        decomposition,
        heldout=heldout,
        fit=fit,
        selectivity=table,
        display=npeff.report.Texts(rest.display, ("premise", "hypothesis")),
        model=task.model,
        notes=[found.note(j) for j in range(decomposition.n_components)],
        title="A transformer misled by shared words",
    )
    print(f"look at {report.resolve()}")
