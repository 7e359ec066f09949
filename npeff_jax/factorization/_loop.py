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
from npeff_jax.factorization._checkpoints import CheckpointStore, Saved
from npeff_jax.factorization._decomposition import History
from npeff_jax.factorization._objective import relative_loss
from npeff_jax.factorization._settings import Solver, Stopping
from npeff_jax.factorization.rows import RowSpace, Vectors


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is decomposed, as a solver sees it.

    Attributes:
        rows: A.
        owner: (N,), the example of each row, ascending.
        squared_norm: ‖F‖².
        n_frozen: components that keep their vectors.
    """

    rows: RowSpace
    owner: Int[Array, "N"]
    squared_norm: float
    n_frozen: int = 0


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


ROUNDING = 1e-7
"""What float32 products leave of a loss that should be zero, as a fraction of ‖F‖²: decreases of less mean nothing."""

Callback = Callable[[Iterate], bool | None]
"""Called every ``Stopping.window`` steps; True ends the iterations."""


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """Where the iterations ended."""

    W: jax.Array
    G: Vectors
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
    losses: list[float] = []
    seconds: list[float] = []
    saved = store.load() if store else None
    if saved is not None:
        W, G = replicate(saved.W, problem.rows.mesh), problem.rows.from_host(saved.G)
        losses, seconds = saved.losses.tolist(), saved.seconds.tolist()
    start = time.monotonic() - (seconds[-1] if seconds else 0.0)
    squared_norm = np.float32(problem.squared_norm)
    warm_up = getattr(algorithm.solver, "warm_up", 0)
    stopped = _stands_still(losses, stopping, warm_up)
    with progress_bar(progress, "decompose", stopping.max_steps, "step", done=len(losses)) as advance:
        while not stopped:
            done = len(losses)
            end = min(warm_up if done < warm_up else stopping.max_steps, done + stopping.window, stopping.max_steps)
            new_W, new_G, terms = _steps(
                problem.rows,
                problem.owner,
                W,
                G,
                squared_norm,
                end - done,
                algorithm=algorithm,
                window=stopping.window,
                n_frozen=problem.n_frozen,
                move_W=done >= warm_up,
            )
            found = relative_loss(fetch(terms)[: end - done], problem.squared_norm)
            bad = np.flatnonzero(~np.isfinite(found))
            if bad.size:
                stopped = _name_cause(algorithm.solver, new_G, done + int(bad[0]) + 1, done)
                break
            W, G = new_W, new_G
            now = time.monotonic() - start
            before = seconds[-1] if seconds else 0.0
            losses += found.tolist()
            seconds += np.linspace(before, now, end - done + 1)[1:].tolist()
            advance(end - done, loss=losses[-1])
            stopped = _stands_still(losses, stopping, warm_up)
            if callback is not None and callback(Iterate(end, losses[-1], now, W)):
                stopped = f"the callback ended it after {end} steps"
            if store and (stopped or end % (store.every * stopping.window) == 0):
                store.save(Saved(fetch(W), problem.rows.to_host(G), np.array(losses), np.array(seconds)))
    history = History(np.arange(1, len(losses) + 1), np.array(losses), np.array(seconds))
    return Outcome(W, G, history, stopped)


def _stands_still(losses: list[float], stopping: Stopping, warm_up: int) -> str:
    """Why to stop, or nothing. Looks only where a whole window has passed since the warm-up."""
    steps, window = len(losses), stopping.window
    if steps > warm_up + window and (steps - warm_up) % window == 0:
        decrease = (losses[-1 - window] - losses[-1]) / max(abs(losses[-1]), ROUNDING) / window
        if decrease < stopping.tolerance:
            return (
                f"converged: over the last {window} of {steps} steps the loss fell by {decrease:.1e} of itself a step, "
                f"below tolerance={stopping.tolerance:g}"
            )
    return f"reached max_steps={stopping.max_steps}" if steps >= stopping.max_steps else ""


@functools.partial(jax.jit, static_argnames=("algorithm", "window", "n_frozen", "move_W"))
def _steps(
    rows: RowSpace,
    owner: Int[Array, "N"],
    W: jax.Array,
    G: Vectors,
    squared_norm: Float[Array, ""],
    count: Int[Array, ""] | int,
    *,
    algorithm: Algorithm,
    window: int,
    n_frozen: int,
    move_W: bool,
) -> tuple[jax.Array, Vectors, Float[Array, "window 2 r"]]:
    """``count`` steps from W and G, whose products are computed anew, and the loss terms after each."""

    def body(k: jax.Array, carry: tuple) -> tuple:
        state, terms = carry
        state = algorithm.step(rows, owner, state, algorithm.solver, squared_norm, n_frozen=n_frozen, move_W=move_W)
        return state, terms.at[k].set(state.terms)

    terms = jnp.zeros((window, 2, W.shape[1]))
    state, terms = jax.lax.fori_loop(0, count, body, (algorithm.init(rows, owner, W, G), terms))
    return state.W, state.G, terms


def _name_cause(solver: Solver, G: Vectors, step: int, kept: int) -> str:
    broken = "the pseudo-Fishers" if not bool(jnp.isfinite(G).all()) else "the coefficients"
    remedy = "lower its learning_rate" if hasattr(solver, "learning_rate") else "look for extreme values in the PEFs"
    return (
        f"non-finite: {broken} overflowed at step {step} of {type(solver).__name__}; {remedy}. "
        f"This result is the last good state, after {kept} steps"
    )
