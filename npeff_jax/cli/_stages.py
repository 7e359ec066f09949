"""The stages from a model to components: ``npeff plan | pefs | decompose | fit | expand | perturb``."""

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
    by_parameters: Flag = False,
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
        by_parameters: compare explaining all parameters, attention alone, the last layer, a LoRA, … as far as they are
            named so: m, memory and time of each.
    """
    import npeff_jax

    model, data = explained.load(progress=True)
    settings: dict[str, Any] = {"keep": keep or None, "max_error": max_error, "seed": seed}
    settings["mesh"] = mesh_of(all_devices)
    if by_parameters:
        if figure is not None:
            raise ValueError("--figure draws one plan, --by-parameters makes several; leave one of them out")
        print(npeff_jax.plan_parameters(model, data.examples, fishers.representation(), n_sampled=2, **settings))
        print("choose with --mask and globs over the names, such as '*attn*'")
        return
    found = npeff_jax.plan(model, data.examples, fishers.representation(), n_sampled=n_sampled, **settings)
    print(found)
    if figure is not None:
        with needs("--figure"):
            drawn = found.figure()
        drawn.savefig(output_file(figure))


@stage
def encode(explained: Explained, out: Path, progress: Show = Show.BAR, overwrite: Flag = False) -> None:
    """Write examples as arrays, once, for every command after it: --examples OUT. Next: npeff plan, npeff pefs.

    Texts are tokenized, the positions that a causal language model predicts become examples of their own, and answers
    are drawn (--generate), which takes longest. What is shown of each example goes with it.

    Args:
        explained: what is explained.
        out: .npz file to write.
        progress: a bar, JSON lines, or none.
        overwrite: replace what is there.
    """
    if out.suffix != ".npz":
        raise ValueError(f"--out {out} must end in .npz")
    _, data = explained.load(progress_of(progress))
    arrays = data.examples if isinstance(data.examples, dict) else {"inputs": data.examples}
    beside = {"labels": data.labels, "groups": data.groups}
    if data.display is not None and not hasattr(data.display, "shape"):
        beside["display"] = np.array(data.display, dtype=np.str_)
    part = out.with_name(out.name + ".part.npz")
    np.savez_compressed(part, **arrays, **{name: array for name, array in beside.items() if array is not None})
    part.replace(out)
    print(f"{len(data):,} examples of {', '.join(f'{k} {np.shape(v)[1:]}' for k, v in arrays.items())}")


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
    restarts: int = 1,
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
        restarts: starts to try on a part of the examples; the one with the lowest loss goes on with all of them.
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
        restarts=restarts,
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
    n_others: MaybeInt = None,
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
        n_others: other components whose moves are tried on a component's top examples; all by default.
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
        nulls=npeff_jax.Nulls(n_random_examples=n_random, n_other_components=n_others),
        seed=seed,
        passes=npeff_jax.Passes(mesh=mesh_of(all_devices)),
        progress=progress_of(progress),
        **settings,
    )
    save_arrays(out, table)
    print(repr(table))
