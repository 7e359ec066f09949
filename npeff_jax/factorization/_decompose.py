"""`decompose`: the front of the factorization."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from npeff_jax._progress import Progress
from npeff_jax._sharding import factorization_mesh
from npeff_jax.factorization import _diagonal, _lrm, _paper
from npeff_jax.factorization._decomposition import Decomposition
from npeff_jax.factorization._finish import finish
from npeff_jax.factorization._loop import Algorithm, Callback, Problem, iterate
from npeff_jax.factorization._settings import HALS, DampedALS, Multiplicative, Paper, Products, Solver, Start, Stopping
from npeff_jax.factorization._stack import Stack, stack
from npeff_jax.factorization._start import start_coefficients, start_vectors
from npeff_jax.factorization.rows import DenseRows
from npeff_jax.pefs import Kind, Pefs, Schema


def decompose(
    pefs: Pefs,
    n_components: int,
    *,
    seed: int = 0,
    solver: Solver | None = None,
    stopping: Stopping | None = None,
    start: Start | None = None,
    products: Products = Products.FLOAT32,
    min_count: int = 1,
    mesh: Mesh | None = None,
    callback: Callback | None = None,
    progress: Progress = True,
) -> Decomposition:
    """Decompose PEFs into shared components: F_i ≈ Σ_j W_ij H_j (eq. 4), LRM-NPEFF or D-NPEFF as the PEFs are.

    Args:
        pefs: what `compute_pefs` gave.
        n_components: r.
        seed: of the start.
        solver: `DampedALS` for low-rank PEFs and `HALS` for diagonal ones by default; `Paper` and `Multiplicative` are
            the paper's own.
        stopping: when to end.
        start: a given W or G.
        products: precision of the large products.
        min_count: parameters with fewer non-zeros over all rows are pruned; the energy lost is in ``settings``.
        mesh: the devices to use, JAX's default device without one.
        callback: called every ``stopping.window`` steps with an `Iterate`; True ends the iterations.
        progress: True for a bar, False for none, a text stream for JSON lines.

    Returns:
        Unit-norm pseudo-Fishers, coefficients that carry the scale, and how it went. Losses are fractions of ‖F‖².

    Raises:
        ValueError: more components than rows, no examples, values that are not finite, a solver of the other flavour.
    """
    solver = default_solver(pefs.schema.kind) if solver is None else solver
    check_solver(solver, pefs.schema.kind)
    stacked = stack(pefs, min_count=min_count)
    check_n_components(n_components, stacked)
    rows = DenseRows.of(stacked.A, factorization_mesh(mesh), products)
    start = start or Start()
    n = stacked.n_examples
    nonnegative = pefs.schema.kind is Kind.DIAGONAL
    if start.pseudo_fishers is None:
        G = start_vectors(rows, n_components, seed, nonnegative=nonnegative)
    else:
        G = rows.coordinates(np.asarray(start.pseudo_fishers, np.float32)[:, stacked.parameter_indices])
    if start.coefficients is None:
        W = jnp.asarray(start_coefficients(n, n_components, seed, solver))
    else:
        W = jnp.asarray(start.coefficients, jnp.float32)
    settings = {
        "n_components": n_components,
        "seed": seed,
        "solver": describe(solver),
        "products": products.value,
        "min_count": min_count,
        "lost_energy": stacked.lost_energy,
        "row_space": "dense",
    }
    problem = Problem(rows, jnp.asarray(stacked.owner), stacked.squared_norm)
    return solve(
        pefs.schema,
        algorithm_of(solver),
        problem,
        W,
        G,
        stopping or Stopping(),
        stacked.parameter_indices,
        settings,
        callback=callback,
        progress=progress,
    )


def solve(
    schema: Schema,
    algorithm: Algorithm,
    problem: Problem,
    W: Any,
    G: Any,
    stopping: Stopping,
    parameter_indices: np.ndarray,
    settings: dict[str, Any],
    *,
    callback: Callback | None,
    progress: Progress,
) -> Decomposition:
    """Iterate, then put the result into its final form."""
    outcome = iterate(algorithm, problem, W, G, stopping, progress=progress, callback=callback)
    vectors = problem.rows.expand(outcome.G)
    finished = finish(np.asarray(outcome.W), vectors, schema.kind, problem.squared_norm, problem.n_frozen)
    settings |= {
        "stopping": dataclasses.asdict(stopping),
        "dead": finished.dead,
        "duplicates": finished.duplicates,
        "squared_norm": problem.squared_norm,
    }
    return Decomposition(
        schema=schema,
        coefficients=finished.W,
        pseudo_fishers=finished.G,
        parameter_indices=parameter_indices,
        history=outcome.history,
        stopped=outcome.stopped,
        settings=settings,
        n_frozen=problem.n_frozen,
    )


def default_solver(kind: Kind) -> Solver:
    """What the study of solvers chose."""
    return DampedALS() if kind is Kind.LOW_RANK else HALS()


def algorithm_of(solver: Solver) -> Algorithm:
    """A solver's pure functions."""
    match solver:
        case DampedALS():
            return Algorithm(_lrm.init, _lrm.step, solver)
        case Paper():
            return Algorithm(_lrm.init, _paper.step, solver)
        case HALS() | Multiplicative():
            return Algorithm(_diagonal.init, _diagonal.step, solver)


def check_solver(solver: Solver, kind: Kind) -> None:
    """Raise unless the solver is of the PEFs' flavour."""
    expected = (DampedALS, Paper) if kind is Kind.LOW_RANK else (HALS, Multiplicative)
    if not isinstance(solver, expected):
        names = " or ".join(option.__name__ for option in expected)
        raise ValueError(f"solver={type(solver).__name__} does not decompose {kind.value} PEFs; choose {names}")


def check_n_components(n_components: int, stacked: Stack) -> None:
    """Raise unless 1 <= r <= N."""
    if not 1 <= n_components <= stacked.A.shape[0]:
        raise ValueError(
            f"n_components={n_components} is not from 1 to the {stacked.A.shape[0]} rows of A "
            f"({stacked.n_examples} examples); choose fewer components or compute more PEFs"
        )


def describe(solver: Solver) -> dict[str, Any]:
    """A solver as JSON."""
    return {"name": type(solver).__name__} | dataclasses.asdict(solver)
