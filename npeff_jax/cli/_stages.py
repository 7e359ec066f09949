"""The stages from a model to tested components: ``npeff plan | pefs | decompose | fit | expand | perturb``."""

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
    """Estimate from a few examples the time and size of PEFs, and the loss for each choice of --keep.

    Writes nothing except the figure. Next: npeff pefs, with the suggested --keep.

    Args:
        explained: the model and its examples.
        fishers: representation of Fishers.
        keep: values of --keep to compare; by default a geometric series.
        n_sampled: number of examples to measure.
        max_error: largest median error of a sparsified Fisher allowed for the suggested --keep.
        seed: seed of the choice of examples.
        all_devices: use all devices instead of the first.
        figure: also plot kept energy and error against --keep, to this file.
        by_parameters: compare m, memory and time of explaining all parameters, attention only, the last layer, a LoRA,
            …, according to the names of parameters.
    """
    import npeff_jax

    model, data = explained.load(progress=True)
    settings: dict[str, Any] = {"keep": keep or None, "max_error": max_error, "seed": seed}
    settings["mesh"] = mesh_of(all_devices)
    if by_parameters:
        if figure is not None:
            raise ValueError("--figure draws one plan and --by-parameters makes several; pass only one of the two")
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
    """Encode examples as arrays once, for all later commands: --examples OUT. Next: npeff plan, npeff pefs.

    Texts are tokenized, predicted positions of a causal language model become separate examples, and answers are
    sampled (--generate), which takes longest. The display of each example is included.

    Args:
        explained: the model and its examples.
        out: .npz file to write.
        progress: a bar, JSON lines, or none.
        overwrite: replace existing results.
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
    """Compute per-example Fishers (PEFs): the sensitivity of each prediction to the model's parameters.

    If interrupted, run the same command again to continue. Next: npeff decompose.

    Args:
        explained: the model and its examples.
        fishers: representation of Fishers.
        out: directory to write the PEFs to.
        keep: non-zeros kept per example; "npeff plan" shows the cost and loss of each choice. By default all.
        normalization: when each Fisher is scaled to norm 1; the paper does it before entries are dropped.
        dtype: dtype of the values on disk; half precision halves their size.
        batch_size: examples per batch; by default chosen from the free memory.
        on_failure: stop at an example with non-finite gradients, or skip it.
        all_devices: use all devices instead of the first.
        progress: a bar, JSON lines, or none.
        overwrite: replace existing results.
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
    """Decompose PEFs into components shared by many examples. Next: npeff fit, npeff report.

    If interrupted, run the same command again to continue from the last checkpoint.

    Args:
        pefs: PEFs, from "npeff pefs".
        out: directory to write the decomposition to.
        n_components: number of components; the paper uses 512 for 50,000 examples. With too many, concepts are split;
            with too few, they are mixed.
        tunings: .csv file of marks on the examples of these PEFs, with a column per named component and a row per
            example; 1 or yes, 0 or no, a weight, or empty if unknown.
        follow: how tightly coefficients of marked examples follow their marks, from 0 to 1.
        avoid: how tightly coefficients of examples marked zero are tied to zero, from 0 to 1.
        seed: seed of the start. Compare several seeds before trusting single components.
        restarts: number of random starts to try on a part of the examples; the best continues with all examples.
        max_steps: maximum number of iterations.
        tolerance: relative decrease of the loss per step below which iterations stop.
        min_count: parameters that are non-zero in fewer rows are left out.
        rows: form of the computation; auto chooses by size and memory. All give the same result.
        all_devices: use all devices instead of the first.
        progress: a bar, JSON lines, or none.
        overwrite: replace existing results.
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
    """Fit coefficients of other examples to the components. Next: npeff perturb, npeff report.

    Args:
        decomposition: components, from "npeff decompose".
        pefs: PEFs of held-out examples, from "npeff pefs" with the same model and options.
        out: .npz file to write.
        tolerance: relative tolerance of optimality.
        overwrite: replace existing results.
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
    """Learn new components for other examples beside frozen ones, to find what is new in these examples.

    Args:
        decomposition: components, from "npeff decompose".
        pefs: PEFs of the examples to learn from.
        out: directory to write the larger decomposition to.
        n_new: number of components to add.
        only_wrong: use only examples whose prediction differs from the label.
        seed: seed of the new components.
        progress: a bar, JSON lines, or none.
        overwrite: replace existing results.
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
    """Test components: move the model along each of them and measure whose predictions change.

    Args:
        explained: the model, and the examples of these PEFs.
        decomposition: components, from "npeff decompose".
        pefs: PEFs of the examples to test on.
        fit: coefficients of these examples, from "npeff fit".
        out: .npz file to write.
        n_top: number of top examples per component.
        n_random: number of random other examples to compare with.
        n_others: number of other components whose moves are measured on a component's top examples; by default all.
        norm: L2 norm of the change of the parameters; by default 0.1 for low-rank components, and for diagonal ones
            the norm that reaches a mean KL of 0.05 to 0.2.
        seed: seed of the random examples and directions.
        all_devices: use all devices instead of the first.
        progress: a bar, JSON lines, or none.
        overwrite: replace existing results.
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
