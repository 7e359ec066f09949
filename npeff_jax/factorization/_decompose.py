"""`decompose`: the front of the factorization."""

import dataclasses
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from npeff_jax._progress import Progress
from npeff_jax._sharding import fetch, replicate
from npeff_jax.factorization import _diagonal, _lrm, _paper
from npeff_jax.factorization._checkpoints import Checkpoints, CheckpointStore
from npeff_jax.factorization._choose import bytes_of, host_memory
from npeff_jax.factorization._decomposition import Decomposition, load_decomposition
from npeff_jax.factorization._finish import FinishedVectors, finish
from npeff_jax.factorization._fit import fit_coefficients
from npeff_jax.factorization._loop import Algorithm, Callback, Problem, iterate
from npeff_jax.factorization._settings import (
    HALS,
    DampedALS,
    Kernel,
    Multiplicative,
    Paper,
    Products,
    RowChoice,
    Solver,
    Start,
    Stopping,
)
from npeff_jax.factorization._source import Source, source_of_model, source_of_pefs
from npeff_jax.factorization._stack import stack
from npeff_jax.factorization._start import start_coefficients, start_vectors
from npeff_jax.factorization.rows import ModelRows, SketchedRows, Vectors
from npeff_jax.pefs import FisherKind, Pefs


def decompose(
    pefs: Pefs | ModelRows,
    n_components: int,
    *,
    seed: int = 0,
    solver: Solver | None = None,
    stopping: Stopping | None = None,
    start: Start | None = None,
    rows: RowChoice | None = None,
    products: Products = Products.FLOAT32,
    min_count: int = 1,
    mesh: Mesh | None = None,
    path: str | os.PathLike | None = None,
    checkpoints: Checkpoints | None = None,
    callback: Callback | None = None,
    progress: Progress = True,
) -> Decomposition:
    """Decompose PEFs into shared components: F_i ≈ Σ_j W_ij H_j (eq. 4), LRM-NPEFF or D-NPEFF as the PEFs are.

    Args:
        pefs: what `compute_pefs` gave, or `model_rows` to work on the exact Fishers of a model.
        n_components: r.
        seed: of the start.
        solver: `DampedALS` for low-rank PEFs and `HALS` for diagonal ones by default; `Paper` and `Multiplicative` are
            the paper's own.
        stopping: when to end.
        start: a given W or G.
        rows: how the rows are held; by default what is estimated to be fastest. ``settings["row_space"]`` says why.
        products: precision of the large products.
        min_count: parameters with fewer non-zeros over all rows are pruned; the energy lost is in ``settings``.
        mesh: the devices to use, JAX's default device without one. They need not divide rows or parameters: what is
            left over is padded by zeros, which change no product.
        path: where the result is saved, as by `Decomposition.save`. Its pseudo-Fishers then stay on disk and are read
            by row: they may be larger than memory, as PEFs that are on disk may, for which ``rows=Kernel()`` needs N²
            numbers, and blocks of what is on disk.
        checkpoints: where to save on the way, and to resume from.
        callback: called every ``stopping.window`` steps with an `Iterate`; True ends the iterations.
        progress: True for a bar, False for none, a text stream for JSON lines.

    Returns:
        Unit-norm pseudo-Fishers, coefficients that carry the scale, and how it went. Losses are fractions of ‖F‖².

    Raises:
        ValueError: more components than rows, no examples, values that are not finite, a solver of the other
            flavour, or rows or pseudo-Fishers that do not fit.
        FileExistsError: there is something at ``path``.
    """
    check_path(path)
    kind = FisherKind.LOW_RANK if isinstance(pefs, ModelRows) else pefs.schema.kind
    solver = default_solver(kind) if solver is None else solver
    check_solver(solver, kind)
    start, stopping = start or Start(), stopping or Stopping()
    if isinstance(pefs, ModelRows):
        check_n_components(n_components, pefs.n_examples * pefs.rows_per_example, pefs.n_examples)
        check_start(start, pefs.n_examples, n_components, pefs.model.space.size, kind)
        check_vectors_fit(n_components, pefs.model.space.size, path)
        source = source_of_model(pefs, mesh, progress)
    else:
        stacked = stack(pefs, min_count=min_count)
        check_n_components(n_components, stacked.A.shape[0], stacked.n_examples)
        check_start(start, stacked.n_examples, n_components, pefs.schema.layout.size, kind)
        sketched = isinstance(rows, Kernel) and rows.sketch is not None
        check_vectors_fit(n_components, stacked.A.shape[1], None if sketched else path)
        source = source_of_pefs(pefs.schema, stacked, n_components, mesh, rows, products)
    W, G = starting_point(source, n_components, seed, solver, start)
    settings = {"seed": seed, "solver": describe(solver), "min_count": min_count, "start": start.given} | source.notes
    found = solve(
        source,
        algorithm_of(solver),
        W,
        G,
        stopping,
        settings,
        callback=callback,
        progress=progress,
        checkpoints=checkpoints,
    )
    if isinstance(source.rows, SketchedRows) and isinstance(pefs, Pefs):
        found = on_exact_products(found, pefs)
    return settled(found, path)


def settled(found: Decomposition, path: str | os.PathLike | None) -> Decomposition:
    """With the pseudo-Fishers formed: in memory, or on disk a block at a time."""
    if path is None:
        return dataclasses.replace(found, pseudo_fishers=np.asarray(found.pseudo_fishers))
    found.save(path)
    return load_decomposition(path)


def on_exact_products(found: Decomposition, pefs: Pefs) -> Decomposition:
    """What a sketch found, with coefficients fitted on exact products, and the exact loss beside the sketched one."""
    G = np.asarray(found.pseudo_fishers)
    fit, norm = fit_coefficients(dataclasses.replace(found, pseudo_fishers=G), pefs), found.settings["squared_norm"]
    finished = finish(fit.coefficients, G @ G.T, found.kind, norm)
    losses = {"sketched_loss": float(found.history.loss[-1]), "loss": fit.loss}
    remarks = {"dead": finished.dead, "duplicates": finished.duplicates}
    return dataclasses.replace(
        found,
        coefficients=finished.W,
        pseudo_fishers=G[finished.order],
        settings=found.settings | losses | remarks,
    )


def starting_point(source: Source, r: int, seed: int, solver: Solver, start: Start) -> tuple[jax.Array, Vectors]:
    """W and G as given, or drawn."""
    rows = source.rows
    if start.coefficients is None:
        W = start_coefficients(source.n_examples, r, seed, solver)
    else:
        W = np.asarray(start.coefficients, np.float32)
    if start.pseudo_fishers is None:
        nonnegative = source.schema.kind is FisherKind.DIAGONAL
        return replicate(W, rows.mesh), start_vectors(rows, r, seed, nonnegative=nonnegative)
    given = np.asarray(start.pseudo_fishers, np.float32)
    return replicate(W, rows.mesh), rows.coordinates(given[:, source.parameter_indices])


def solve(
    source: Source,
    algorithm: Algorithm,
    W: jax.Array,
    G: Vectors,
    stopping: Stopping,
    settings: dict[str, Any],
    *,
    n_frozen: int = 0,
    callback: Callback | None = None,
    progress: Progress = True,
    checkpoints: Checkpoints | None = None,
) -> Decomposition:
    """Iterate, then put the result into its final form, its pseudo-Fishers yet to be formed."""
    schema, norm = source.schema, source.squared_norm
    settings = {"n_components": W.shape[1], "n_frozen": n_frozen} | settings
    store = CheckpointStore(checkpoints, _identity(source, settings, stopping)) if checkpoints else None
    problem = Problem(source.rows, source.owner, norm, source.energy, n_frozen, schema.kind is FisherKind.LOW_RANK)
    outcome = iterate(algorithm, problem, W, G, stopping, progress=progress, callback=callback, store=store)
    if store:
        store.close()
    finished = finish(fetch(outcome.W), fetch(outcome.GG), schema.kind, norm, n_frozen)

    def form(components: np.ndarray) -> np.ndarray:
        if len(components) == len(finished.order):
            return source.rows.expand(outcome.G)[components]
        return source.rows.expand(outcome.G[components])

    vectors = FinishedVectors(form, finished.order, len(source.parameter_indices), n_frozen)
    remarks = {"dead": finished.dead, "duplicates": finished.duplicates}
    return Decomposition(
        schema=schema,
        coefficients=finished.W,
        pseudo_fishers=vectors,
        parameter_indices=source.parameter_indices,
        history=outcome.history,
        stopped=outcome.stopped,
        settings=settings | {"stopping": dataclasses.asdict(stopping), "squared_norm": norm} | remarks,
        n_frozen=n_frozen,
    )


def _identity(source: Source, settings: dict[str, Any], stopping: Stopping) -> dict[str, Any]:
    """What two runs must share for one to go on where the other stopped; devices and limits may differ."""
    schema = source.schema
    same = {name: value for name, value in settings.items() if name != "row_space"}
    same |= {"row_space": type(source.rows).__name__, "window": stopping.window}
    return same | {"kind": schema.kind.value, "model": schema.model, "examples": schema.examples}


def default_solver(kind: FisherKind) -> Solver:
    """What the study of solvers chose."""
    return DampedALS() if kind is FisherKind.LOW_RANK else HALS()


def algorithm_of(solver: Solver) -> Algorithm:
    """A solver's pure functions."""
    match solver:
        case DampedALS():
            return Algorithm(_lrm.init, _lrm.step, solver)
        case Paper():
            return Algorithm(_lrm.init, _paper.step, solver)
        case HALS() | Multiplicative():
            return Algorithm(_diagonal.init, _diagonal.step, solver)


def check_solver(solver: Solver, kind: FisherKind) -> None:
    """Raise unless the solver is of the PEFs' flavour."""
    expected = (DampedALS, Paper) if kind is FisherKind.LOW_RANK else (HALS, Multiplicative)
    if not isinstance(solver, expected):
        names = " or ".join(option.__name__ for option in expected)
        raise ValueError(f"solver={type(solver).__name__} does not decompose {kind.value} PEFs; choose {names}")


def check_n_components(n_components: int, n_rows: int, n_examples: int) -> None:
    """Raise unless 1 <= r <= N."""
    if not 1 <= n_components <= n_rows:
        raise ValueError(
            f"n_components={n_components} is not from 1 to the {n_rows} rows of A ({n_examples} examples); "
            "choose fewer components or compute more PEFs"
        )


def check_start(start: Start, n: int, r: int, m: int, kind: FisherKind) -> None:
    """Raise where a given W or G is of another shape, or negative where it must not be."""
    for name, shape, nonnegative in (
        ("coefficients", (n, r), True),
        ("pseudo_fishers", (r, m), kind is FisherKind.DIAGONAL),
    ):
        given = getattr(start, name)
        if given is not None and (np.shape(given) != shape or (nonnegative and not (np.asarray(given) >= 0).all())):
            sign = ", non-negative" if nonnegative else ""
            raise ValueError(f"start.{name} has shape {np.shape(given)}; expected {shape}{sign}")


def check_vectors_fit(r: int, m: int, path: str | os.PathLike | None) -> None:
    """Raise where the pseudo-Fishers would be in memory, and are too many."""
    if path is None and 4 * r * m > host_memory() / 2:
        raise ValueError(
            f"{r} pseudo-Fishers over {m} parameters are {bytes_of(4 * r * m)} and would be in memory, of which there "
            f"are {bytes_of(host_memory())}; pass path= to keep them on disk, fewer components or a larger min_count"
        )


def check_path(path: str | os.PathLike | None) -> None:
    """Raise where the result could not be saved."""
    if path is None:
        return
    if os.path.exists(path):
        raise FileExistsError(f"{path} exists; choose another path or remove it first")
    if jax.process_count() > 1:
        raise ValueError("path= is for one process; decompose without it and save the result in the first process")


def describe(solver: Solver) -> dict[str, Any]:
    """A solver as JSON."""
    return {"name": type(solver).__name__} | dataclasses.asdict(solver)
