"""Several starts: each is run on a part of the examples, and the best one goes on with all of them.

What goes on are coefficients: those of all examples, fitted to the vectors that the best start found. The solver then
solves the vectors of all examples for them before it moves them (`Solver.warm_up`), which needs nothing of a row space.
"""

import time
from typing import Any

import numpy as np

from npeff_jax._checks import check_integer
from npeff_jax._progress import Progress
from npeff_jax._sharding import replicate
from npeff_jax.factorization._decomposition import finished
from npeff_jax.factorization._driver import Outcome, iterate
from npeff_jax.factorization._fit import fit_coefficients
from npeff_jax.factorization._problem import Problem, of_stack
from npeff_jax.factorization._run import Stopping
from npeff_jax.factorization._stack import stack
from npeff_jax.factorization.row_spaces import ProductPrecision, RowChoice
from npeff_jax.factorization.solvers import Factors, InitialFactors, Solver
from npeff_jax.pefs import Pefs

PER_COMPONENT, SHARE = 4, 4
"""A part has at least so many examples per component (with fewer, what is best on the part need not be on all), and
at least one in so many examples: in kernel form a step then costs a sixteenth."""


def check_restarts(restarts: Any, given: InitialFactors) -> int:
    """Return the number of starts; raise where it is none, or where the start is given."""
    count = check_integer("restarts", restarts)
    if count > 1 and given.given:
        raise ValueError(
            f"restarts={count} draws starts and start= gives one ({' and '.join(given.given)}); pass one of the two"
        )
    return count


def part_size(n_examples: int, n_components: int) -> int:
    """Return how many examples starts are tried on."""
    return min(n_examples, max(PER_COMPONENT * n_components, -(-n_examples // SHARE)))


def best_start(
    problem: Problem,
    pefs: Pefs | None,
    n_components: int,
    seed: int,
    restarts: int,
    solver: Solver,
    stopping: Stopping,
    rows: RowChoice | None,
    progress: Progress,
) -> tuple[Factors, dict[str, Any]]:
    """Try the starts of the seeds from ``seed`` on; return where the best one goes on from, and what was tried.

    Args:
        problem: of all examples.
        pefs: its PEFs, of which a part is taken; None where only ``problem`` is at hand, all of which then serves.
        n_components: r.
        seed: of the first start; the others have the next ones. It also draws the part.
        restarts: how many.
        solver: as for `decompose`.
        stopping: of every start.
        rows: as for `decompose`, for the part.
        progress: as for `decompose`.
    """
    begin = time.monotonic()
    n, part = problem.n_examples, problem
    present = np.flatnonzero(problem.has_rows)
    size = part_size(len(present), n_components)
    if pefs is not None and size < len(present):
        chosen = np.sort(np.random.default_rng([seed, 2]).choice(present, size, replace=False))
        part = _part_of(problem, pefs.subset(chosen), n_components, rows)
    best: Outcome | None = None
    losses: list[float] = []
    for k in range(restarts):
        at = solver.start(part, n_components, seed + k, InitialFactors())
        found = iterate(solver, part, at, stopping, progress=progress, stage=f"start {k + 1} of {restarts}")
        losses.append(float(found.history.loss[-1]) if found.history.loss.size else float("inf"))
        if best is None or losses[-1] < min(losses[:-1]):
            best = found
    assert best is not None
    chosen_seed = seed + int(np.argmin(losses))
    if part is problem:
        start = Factors(best.W, best.G, replicate(np.asarray(solver.warm_up, np.int32), problem.rows.mesh))
    else:
        components = finished(part, best.W, best.G, best.GG, best.history, best.stopped, {})
        W = fit_coefficients(components, pefs).coefficients if pefs is not None else None
        start = solver.start(problem, n_components, chosen_seed, InitialFactors(coefficients=W))
    tried = {"seeds": [seed + k for k in range(restarts)], "losses": losses, "examples": part.n_examples}
    return start, tried | {"of": n, "seconds": time.monotonic() - begin}


def sentence(tried: dict[str, Any]) -> str:
    """Return what a result says about its starts beside why it stopped."""
    losses = [f"{loss:.4g}" for loss in sorted(tried["losses"])]
    return (
        f"the best of {len(losses)} starts, whose losses on {tried['examples']} of {tried['of']} examples were "
        f"{', '.join(losses)}"
    )


def _part_of(problem: Problem, pefs: Pefs, n_components: int, rows: RowChoice | None) -> Problem:
    """Return the problem of a part of the examples, on the same parameters and devices."""
    assert problem.origin is not None
    stacked = stack(pefs, parameter_indices=problem.origin.parameter_indices)
    # without rows= another row space may be best for a part, which need not have products of that precision
    products = ProductPrecision.FLOAT32 if rows is None else ProductPrecision(problem.origin.notes["products"])
    return of_stack(stacked, pefs.schema, rows, n_components, problem.rows.mesh, products, None)
