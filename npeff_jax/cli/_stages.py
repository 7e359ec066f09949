"""The stages from a model to components: ``npeff plan | pefs | decompose | fit | expand | perturb | repair``."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from npeff_jax._extras import needs
from npeff_jax.cli._options import (
    Explained,
    Fishers,
    Flag,
    Ints,
    MaybeFloat,
    MaybeInt,
    MaybePath,
    RowForm,
    Show,
    mesh_of,
    progress_of,
    rows_of,
)
from npeff_jax.cli._record import load_arrays, save_arrays, stage
from npeff_jax.pefs import DType, Normalization, OnFailure
from npeff_jax.report import output_file


def plan(
    explained: Explained,
    fishers: Fishers,
    keep: Ints = (),
    n_sampled: int = 8,
    max_error: float = 0.25,
    seed: int = 0,
    all_devices: Flag = False,
    figure: MaybePath = None,
) -> None:
    """Measure on a few examples how long PEFs will take, how large they get, and what each choice of --keep loses.

    Writes nothing but the figure. Next: npeff pefs, with the suggested --keep.

    Args:
        explained: what is explained.
        fishers: how a Fisher is represented.
        keep: choices to compare; a series by default.
        n_sampled: examples to measure.
        max_error: the median error of a sparsified Fisher that the suggested --keep may have.
        seed: of their choice.
        all_devices: use every device rather than the first.
        figure: also draw what is kept and lost against --keep, into this file.
    """
    import npeff_jax

    model, data = explained.load(progress=True)
    found = npeff_jax.plan(
        model,
        data.examples,
        fishers.representation(),
        keep=keep or None,
        n_sampled=n_sampled,
        max_error=max_error,
        seed=seed,
        mesh=mesh_of(all_devices),
    )
    print(found)
    if figure is not None:
        with needs("--figure"):
            drawn = found.figure()
        drawn.savefig(output_file(figure))


@stage
def pefs(
    explained: Explained,
    fishers: Fishers,
    out: Path,
    keep: MaybeInt = None,
    normalization: Normalization = Normalization.BEFORE,
    dtype: DType = "float32",
    batch_size: MaybeInt = None,
    on_failure: OnFailure = "stop",
    all_devices: Flag = False,
    progress: Show = Show.BAR,
    overwrite: Flag = False,
) -> None:
    """Compute per-example Fishers (PEFs): how each prediction reacts to the model's parameters.

    Stopped half-way it goes on where it was when run again. Next: npeff decompose.

    Args:
        explained: what is explained.
        fishers: how a Fisher is represented.
        out: directory to write the PEFs to.
        keep: non-zeros kept for each example; "npeff plan" says what a choice costs and loses. All by default.
        normalization: when each Fisher is scaled to size 1; before entries are dropped is the paper's way.
        dtype: of the values on disk; half precision takes half the space for them.
        batch_size: examples at a time; chosen by memory if not given.
        on_failure: stop at an example whose gradients are not finite, or skip it and go on.
        all_devices: use every device rather than the first.
        progress: a bar, JSON lines, or none.
        overwrite: replace what is there.
    """
    import npeff_jax

    model, found = explained.load(progress_of(progress))
    computed = npeff_jax.compute_pefs(
        model,
        found.examples,
        fishers.representation(),
        labels=found.labels,
        keep=keep,
        path=out,
        on_existing="resume",
        normalization=normalization,
        dtype=dtype,
        batch_size=batch_size,
        on_failure=on_failure,
        mesh=mesh_of(all_devices),
        progress=progress_of(progress),
    )
    print(computed.norm_summary)


@stage
def decompose(
    pefs: Path,
    out: Path,
    n_components: int,
    tunings: MaybePath = None,
    follow: float = 0.1,
    avoid: float = 1.0,
    seed: int = 0,
    max_steps: int = 500,
    tolerance: float = 1e-5,
    min_count: int = 1,
    rows: RowForm = RowForm.AUTO,
    all_devices: Flag = False,
    progress: Show = Show.BAR,
    overwrite: Flag = False,
) -> None:
    """Decompose PEFs into components that many examples share. Next: npeff fit, npeff report.

    Stopped half-way it goes on from its last checkpoint when run again.

    Args:
        pefs: what "npeff pefs" wrote.
        out: directory to write the decomposition to.
        n_components: how many; the paper has 512 for 50,000 examples. Too many split, too few mix what they stand for.
        tunings: .csv file of marks on the examples of these PEFs: a column for each component that is asked for,
            under its name, a row for each example; 1 or yes, 0 or no, a weight, nothing where it is unknown.
        follow: how tightly marked examples are tied to their marks, from 0 to 1.
        avoid: how tightly examples marked zero are tied to zero, from 0 to 1.
        seed: of the start. Decompose with several and compare before trusting single components.
        max_steps: iterations at most.
        tolerance: relative decrease of the loss a step below which it stops.
        min_count: parameters that fewer rows than this touch are left out.
        rows: form of the computation; chosen by size and memory if auto. All give the same result.
        all_devices: use every device rather than the first.
        progress: a bar, JSON lines, or none.
        overwrite: replace what is there.
    """
    import npeff_jax

    unfinished = out.with_name(out.name + ".checkpoints").resolve()
    asked = None if tunings is None else npeff_jax.read_tunings(tunings, follow=follow, avoid=avoid)
    found = npeff_jax.decompose(
        npeff_jax.load_pefs(pefs),
        n_components,
        seed=seed,
        tunings=asked,
        stopping=npeff_jax.Stopping(max_steps=max_steps, tolerance=tolerance),
        min_count=min_count,
        rows=rows_of(rows),
        checkpoints=npeff_jax.factorization.Checkpoints(unfinished),
        mesh=mesh_of(all_devices),
        progress=progress_of(progress),
    )
    found.save(out)
    shutil.rmtree(unfinished, ignore_errors=True)
    print(f"loss {found.loss:.4f} of the PEFs' squared norm; {found.stopped}")
    for component, name in found.names.items():
        energy = np.sum(found.coefficients[:, component].astype(np.float64) ** 2) / found.settings["squared_norm"]
        print(f"component {component} is {name!r}: {energy:.1%} of the squared norm")


@stage
def fit(decomposition: Path, pefs: Path, out: Path, tolerance: float = 1e-5, overwrite: Flag = False) -> None:
    """Fit coefficients of other examples to the components, to a stated optimality. Next: npeff perturb, npeff report.

    Args:
        decomposition: what "npeff decompose" wrote.
        pefs: PEFs of held-out examples, from "npeff pefs" with the same model and options.
        out: .npz file to write.
        tolerance: of optimality, relative.
        overwrite: replace what is there.
    """
    import npeff_jax

    found = npeff_jax.fit_coefficients(
        npeff_jax.load_decomposition(decomposition), npeff_jax.load_pefs(pefs), tolerance=tolerance
    )
    save_arrays(out, found)
    print(f"largest optimality residual {np.max(found.kkt_residual):.2g}")


@stage
def expand(
    decomposition: Path,
    pefs: Path,
    out: Path,
    n_new: int,
    only_wrong: Flag = False,
    seed: int = 0,
    progress: Show = Show.BAR,
    overwrite: Flag = False,
) -> None:
    """Learn new components for other examples, the old ones frozen: what does the model do there that is new?

    Args:
        decomposition: what "npeff decompose" wrote.
        pefs: PEFs of the examples to learn from.
        out: directory to write the larger decomposition to.
        n_new: components to add.
        only_wrong: use only examples that the model predicts otherwise than labelled.
        seed: of the new components' start.
        progress: a bar, JSON lines, or none.
        overwrite: replace what is there.
    """
    import npeff_jax

    found = npeff_jax.load_pefs(pefs)
    if only_wrong:
        if found.labels is None:
            raise ValueError(f"--only-wrong needs labels, and {pefs} has none; compute PEFs of labelled examples")
        found = found.subset(np.asarray(found.logits).argmax(-1) != np.asarray(found.labels))
    larger = npeff_jax.expand(
        npeff_jax.load_decomposition(decomposition), found, n_new, seed=seed, progress=progress_of(progress)
    )
    larger.save(out)


@stage
def perturb(
    explained: Explained,
    decomposition: Path,
    pefs: Path,
    fit: Path,
    out: Path,
    n_top: int = 128,
    n_random: int = 10_000,
    norm: MaybeFloat = None,
    seed: int = 0,
    all_devices: Flag = False,
    progress: Show = Show.BAR,
    overwrite: Flag = False,
) -> None:
    """Move the model along each component and see whose predictions change: the test of what a component claims.

    Args:
        explained: what is explained: the model, and the examples of these PEFs.
        decomposition: what "npeff decompose" wrote.
        pefs: PEFs of the examples to test on.
        fit: their coefficients, from "npeff fit".
        out: .npz file to write.
        n_top: a component's examples with the largest coefficients.
        n_random: other examples to compare with.
        norm: L2 norm of the change of the parameters; 0.1 for low-rank components by default, and for diagonal ones
            the norm that reaches a mean KL of 0.05 to 0.2.
        seed: of the random examples and directions.
        all_devices: use every device rather than the first.
        progress: a bar, JSON lines, or none.
        overwrite: replace what is there.
    """
    import npeff_jax

    model, data = explained.load(progress_of(progress))
    settings: dict[str, Any] = {} if norm is None else {"norm": norm}
    table = npeff_jax.selectivity(
        model,
        npeff_jax.load_decomposition(decomposition),
        npeff_jax.load_pefs(pefs),
        data.examples,
        fit=load_arrays(fit, npeff_jax.CoefficientFit),
        n_top=n_top,
        nulls=npeff_jax.Nulls(n_random_examples=n_random),
        seed=seed,
        passes=npeff_jax.Passes(mesh=mesh_of(all_devices)),
        progress=progress_of(progress),
        **settings,
    )
    save_arrays(out, table)
    print(repr(table))


@stage
def repair(
    explained: Explained,
    decomposition: Path,
    out: Path,
    choosing: float = 0.4,
    components: Ints = (),
    nats: float = 0.01,
    ridge: float = 0.1,
    steps: int = 4,
    seed: int = 0,
    overwrite: Flag = False,
) -> None:
    """Look for a move in the span of components that mends wrong predictions, and report it on other examples.

    The loss gradient of the wrongly predicted examples chooses sign, size and combination; a budget of KL holds the
    rightly predicted ones. The written file has the move, its weights and the changes of accuracy.

    Args:
        explained: what is explained: the model, and labelled examples that no component was found in.
        decomposition: low-rank components, from "npeff decompose" or, better, "npeff expand --only-wrong".
        out: .npz file to write.
        choosing: fraction of the examples that chooses the move; the others report.
        components: to combine; all by default.
        nats: mean KL on rightly predicted examples that the move may cost.
        ridge: of the combination; more trusts single components less.
        steps: how often derivatives are taken anew on the way.
        seed: of the split.
        overwrite: replace what is there.
    """
    import npeff_jax
    from npeff_jax.evaluation import repair as repair_by

    model, data = explained.load()
    if data.labels is None:
        raise ValueError("a repair needs labelled examples, and these have no labels; pass --label-column or others")
    found = repair_by(
        model,
        npeff_jax.load_decomposition(decomposition),
        data.examples,
        data.labels,
        choosing=choosing,
        components=list(components) or None,
        within=npeff_jax.perturbation.TrustRegion(nats=nats, steps=steps, ridge=ridge),
        seed=seed,
    )
    table = found.accuracy
    np.savez(
        out if out.suffix == ".npz" else out.with_name(out.name + ".npz"),
        move=np.asarray(model.space.ravel(found.by.move)),
        weights=found.by.weights,
        components=found.components,
        change=table.change[0],
        interval=table.interval[0],
        kl=table.kl[0],
        groups=np.array(table.groups),
    )
    print(found)
