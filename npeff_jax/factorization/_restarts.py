"""Restarts: run several random starts on a subset of the examples, and continue from the best with all examples.

The run on all examples starts from coefficients fitted to the best start's vectors. The solver's warm-up
(`Solver.warm_up`) then solves for the vectors with these coefficients held fixed, which works in every row space.
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
"""The subset has at least `PER_COMPONENT` examples per component (with fewer, the best start on the subset need not be
the best on all) and at least one in `SHARE` examples: in kernel form a step then costs a sixteenth."""


def check_restarts(restarts: Any, given: InitialFactors) -> int:
    """Return the number of starts, or raise if it is invalid or the start is given."""
    count = check_integer("restarts", restarts)
    if count > 1 and given.given:
        raise ValueError(
            f"restarts={count} draws starts and start= gives one ({' and '.join(given.given)}); pass one of the two"
        )
    return count


def part_size(n_examples: int, n_components: int) -> int:
    """Return the number of examples that starts are tried on."""
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
    """Run several starts on a subset of the examples; return factors to continue from, and a record of the trials.

    Args:
        problem: the problem of all examples.
        pefs: its PEFs, from which the subset is drawn; None to try starts on all of ``problem``.
        n_components: r.
        seed: seed of the first start, and of the subset; further starts use the next seeds.
        restarts: number of starts.
        solver: as for `decompose`.
        stopping: stopping criteria of each start.
        rows: as for `decompose`, for the subset.
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
    """Return a sentence about the starts, which a result appends to its stopping reason."""
    losses = [f"{loss:.4g}" for loss in sorted(tried["losses"])]
    return (
        f"the best of {len(losses)} starts, whose losses on {tried['examples']} of {tried['of']} examples were "
        f"{', '.join(losses)}"
    )


def _part_of(problem: Problem, pefs: Pefs, n_components: int, rows: RowChoice | None) -> Problem:
    """Make the problem of a subset of the examples, on the same parameters and devices."""
    assert problem.origin is not None
    stacked = stack(pefs, parameter_indices=problem.origin.parameter_indices)
    # Another row space may be fastest for the subset, and need not support products of that precision.
    products = ProductPrecision.FLOAT32 if rows is None else ProductPrecision(problem.origin.notes["products"])
    return of_stack(stacked, pefs.schema, rows, n_components, problem.rows.mesh, products, None)
