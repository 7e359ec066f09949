"""The driver of every solver: iterating, progress, stopping, and the guard against non-finite values."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from npeff_jax._progress import Progress, progress_bar
from npeff_jax._sharding import fetch, replicate
from npeff_jax.factorization._checkpoints import CheckpointStore
from npeff_jax.factorization._compile import jit
from npeff_jax.factorization._decomposition import History
from npeff_jax.factorization._exchange import cost_of_removal, worst_row
from npeff_jax.factorization._objective import relative_loss
from npeff_jax.factorization._run import Point, Run
from npeff_jax.factorization._settings import Solver, Stopping
from npeff_jax.factorization._start import combine
from npeff_jax.factorization.rows import RowSpace, Vectors


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is decomposed, as a solver sees it.

    Attributes:
        rows: A.
        owner: (N,), the example of each row, ascending.
        squared_norm: ‖F‖².
        energy: ‖a‖² of each row.
        n_frozen: components that keep their vectors.
        quadratic: LRM-NPEFF, else D-NPEFF.
    """

    rows: RowSpace
    owner: Int[np.ndarray, "N"]
    squared_norm: float
    energy: Float[np.ndarray, "N"]
    n_frozen: int = 0
    quadratic: bool = True


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """A solver's pure functions and its configuration."""

    init: Callable[..., Any]
    step: Callable[..., Any]
    solver: Solver


@dataclasses.dataclass(frozen=True, eq=False)
class Iterate:
    """What a callback gets to see.

    Attributes:
        step: steps done.
        loss: as a fraction of ‖F‖².
        seconds: since the start.
        coefficients: W, on the device.
    """

    step: int
    loss: float
    seconds: float
    coefficients: jax.Array


Callback = Callable[[Iterate], bool | None]
"""Called every ``Stopping.window`` steps; True ends the iterations."""


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """Where the iterations ended."""

    W: jax.Array
    G: Vectors
    GG: jax.Array
    history: History
    stopped: str


def iterate(
    algorithm: Algorithm,
    problem: Problem,
    W: jax.Array,
    G: Vectors,
    stopping: Stopping,
    *,
    progress: Progress = True,
    callback: Callback | None = None,
    store: CheckpointStore | None = None,
) -> Outcome:
    """Run until the loss stands still, the steps are used up, the callback says so, or a value is not finite."""
    run = Run(Point(W, G), np.zeros(problem.owner.shape, bool))
    saved = store.load() if store else None
    if saved is not None:
        run = Run.resume(saved, problem.rows)
    start = time.monotonic() - (run.seconds[-1] if run.seconds else 0.0)
    window, owner = stopping.window, replicate(problem.owner, problem.rows.mesh)
    warm_up = getattr(algorithm.solver, "warm_up", 0)
    exchanges = getattr(algorithm.solver, "exchanges", 0)
    if getattr(algorithm.solver, "stiefel", False):
        exchanges = 0  # a row may lie in the span of the other vectors, and nothing orthonormal is near that
    run.since = max(run.since, warm_up)

    def steps(point: Point, count: int, move_W: bool = True, given: Given | None = None) -> tuple[Point, np.ndarray]:
        *found, terms = _steps(
            problem.rows,
            owner,
            point.W,
            point.G,
            *(given or (point.G[problem.n_frozen :] if problem.n_frozen else point.G, -1)),
            np.float32(problem.squared_norm),
            count,
            algorithm=algorithm,
            window=window,
            n_frozen=problem.n_frozen,
            move_W=move_W,
        )
        return Point(*found), relative_loss(fetch(terms)[:count], problem.squared_norm)

    stopped = f"reached max_steps={stopping.max_steps}" if run.steps >= stopping.max_steps else ""
    with progress_bar(progress, "decompose", stopping.max_steps, "step", done=run.steps) as advance:
        while not stopped:
            done = run.steps
            trial = run.slow(stopping) and run.trials < exchanges
            if trial and run.best.AG is None:
                run.best, _ = steps(run.best, 0)
            point, given = _exchange(run, problem) if trial else (run.best, None)
            end = min(warm_up if done < warm_up else stopping.max_steps, done + window, stopping.max_steps)
            point, found = steps(point, end - done, done >= warm_up, given)
            bad = np.flatnonzero(~np.isfinite(found))
            if bad.size and not trial:
                stopped = _name_cause(algorithm.solver, point.G, done + int(bad[0]) + 1, done)
                break
            now = time.monotonic() - start
            run.record(point, found, now, trial=trial)
            advance(end - done, loss=run.losses[-1])
            stopped = run.stands_still(stopping, exchanges)
            if callback is not None and callback(Iterate(end, run.losses[-1], now, run.best.W)):
                stopped = f"the callback ended it after {end} steps"
            if store and (stopped or end % (store.every * window) == 0):
                store.save(run.saved(problem.rows))
    history = History(np.arange(1, run.steps + 1), np.array(run.losses), np.array(run.seconds))
    if run.best.GG is None:
        run.best, _ = steps(run.best, 0)
    return Outcome(run.best.W, run.best.G, run.best.GG, history, stopped)


Given = tuple[Vectors, int]
"""A bundle of as many vectors as are free, all the same, and which component's place it takes (none's: -1)."""


def _exchange(run: Run, problem: Problem) -> tuple[Point, Given]:
    """The component that is missed least gives its place to the row that is explained worst."""
    mesh, f = problem.rows.mesh, problem.n_frozen
    W, AG, GG = (fetch(array) for array in (run.best.W, run.best.AG, run.best.GG))
    worst = worst_row(W, AG, GG, problem.energy, problem.owner, run.visited, quadratic=problem.quadratic)
    least = f + int(np.argmin(cost_of_removal(W, GG * GG if problem.quadratic else GG)[f:]))
    run.visited[worst] = True
    W = np.where(np.arange(W.shape[1]) == least, np.float32(0), W)
    U = np.zeros((len(AG), W.shape[1] - f), np.float32)  # the shape of the start: it is compiled already
    U[worst] = 1
    new = combine(problem.rows, replicate(U, mesh))
    return Point(replicate(W, mesh), run.best.G), (new, least)


@functools.partial(jit, static_argnames=("algorithm", "window", "n_frozen", "move_W"))
def _steps(
    rows: RowSpace,
    owner: Int[Array, "N"],
    W: jax.Array,
    G: Vectors,
    new: Vectors,
    place: Int[Array, ""] | int,
    squared_norm: Float[Array, ""],
    count: Int[Array, ""] | int,
    *,
    algorithm: Algorithm,
    window: int,
    n_frozen: int,
    move_W: bool,
) -> tuple[jax.Array, Vectors, jax.Array, jax.Array, Float[Array, "window 2 r"]]:
    """``count`` steps from W and G, whose products are computed anew: W, G, A Gᵀ, G Gᵀ, and loss terms after each.

    The first of ``new`` takes the place of vector ``place`` before, where there is one of that number.
    """
    G = jnp.where(jnp.arange(len(G))[:, None] == place, new[0], G)

    def body(k: jax.Array, carry: tuple) -> tuple:
        state, terms = carry
        state = algorithm.step(rows, owner, state, algorithm.solver, squared_norm, n_frozen=n_frozen, move_W=move_W)
        return state, terms.at[k].set(state.terms)

    terms = jnp.zeros((window, 2, W.shape[1]))
    state, terms = jax.lax.fori_loop(0, count, body, (algorithm.init(rows, owner, W, G), terms))
    return *state[:4], terms


def _name_cause(solver: Solver, G: Vectors, step: int, kept: int) -> str:
    broken = "the pseudo-Fishers" if not bool(jnp.isfinite(G).all()) else "the coefficients"
    remedy = "lower its learning_rate" if hasattr(solver, "learning_rate") else "look for extreme values in the PEFs"
    return (
        f"non-finite: {broken} overflowed at step {step} of {type(solver).__name__}; {remedy}. "
        f"This result is the last good state, after {kept} steps"
    )
