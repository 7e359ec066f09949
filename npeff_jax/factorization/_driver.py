"""The loop that runs any solver: compiled windows of steps, stopping, exchanges, checkpoints, progress, and the guard
against non-finite values. It uses a solver through the methods of `Solver` only.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax._progress import Progress, progress_bar
from npeff_jax._sharding import fetch, place, replicate
from npeff_jax.factorization._checkpoints import CheckpointStore, Saved
from npeff_jax.factorization._compile import jit
from npeff_jax.factorization._decomposition import History
from npeff_jax.factorization._exchange import Search, make_offer
from npeff_jax.factorization._objective import relative_loss
from npeff_jax.factorization._problem import Problem
from npeff_jax.factorization._run import EARLIEST, Run, Stopping
from npeff_jax.factorization.row_spaces import Vectors
from npeff_jax.factorization.solvers import Factors, Solver


@dataclasses.dataclass(frozen=True, eq=False)
class Iterate:
    """Argument of a callback: the state of the iterations.

    Attributes:
        step: number of steps done.
        loss: loss as a fraction of ‖F‖².
        seconds: wall-clock time since the start.
        coefficients: W, on the devices.
    """

    step: int
    loss: float
    seconds: float
    coefficients: jax.Array


HOPE = 1.5
"""Factor by which later steps of a window may lower the loss more than the last one did, before an exchange counts as
failed. In 170 windows after an exchange on four problems, none that would have ended by this rule paid at its end."""

Callback = Callable[[Iterate], bool | None]
"""Function called after every window of at most ``Stopping.window`` steps; returning True ends the iterations."""


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """Final factors, history and stopping reason of the iterations."""

    W: jax.Array
    G: Vectors
    GG: np.ndarray
    history: History
    stopped: str


class Limits(NamedTuple):
    """When a window of steps ends.

    Attributes:
        count: number of steps at most.
        target: loss that an exchange has to reach. The window ends as soon as the steps that are left are not expected
            to reach it; infinite for none.
        floor: relative decrease of the loss per step; two steps in a row below it end the window.
    """

    count: Any
    target: Any
    floor: Any


Exchange = tuple[Vectors, jax.Array]
"""Candidate vectors, and per component the index of the candidate that replaces it (−1: none)."""


def iterate(
    solver: Solver,
    problem: Problem,
    start: Factors,
    stopping: Stopping,
    *,
    progress: Progress = True,
    callback: Callback | None = None,
    store: CheckpointStore | None = None,
    stage: str = "decompose",
) -> Outcome:
    """Iterate until convergence, ``max_steps``, a callback that returns True, or a non-finite value."""
    driver = _Driver(solver, problem, start, stopping)
    run = driver.resumed(store.load() if store else None, start)
    begin = time.monotonic() - (run.seconds[-1] if run.seconds else 0.0)
    exchanges, window = driver.exchanges, stopping.window
    warm_up = max(0, solver.warm_up - driver.offset)
    run.since = max(run.since, warm_up)

    stopped = f"reached max_steps={stopping.max_steps}" if run.steps >= stopping.max_steps else ""
    windows = 0
    with progress_bar(progress, stage, stopping.max_steps, "step", done=run.steps) as advance:
        while not stopped:
            done = run.steps
            replaced, exchange = 0, None
            if run.slow(stopping) and run.may_exchange(exchanges):
                replaced, exchange = driver.exchange(run)
            most = min(warm_up if done < warm_up else stopping.max_steps, done + window, stopping.max_steps) - done
            limits = Limits(most, run.target if replaced else np.inf, run.floor(stopping, exchanges))
            state, found = driver.advance(run.best, limits, done, exchange)
            bad = np.flatnonzero(~np.isfinite(found))
            if bad.size and not replaced:
                stopped = driver.cause(state, done + int(bad[0]) + 1, done)
                break
            now = time.monotonic() - begin
            run.record(state, found, now, replaced=replaced)
            advance(len(found), loss=run.losses[-1])
            stopped = run.stands_still(stopping, exchanges)
            if stopped and driver.still_pays(run):
                stopped += f"; stopped with exchanges still paying; pass more ({driver.limit(run)})"
            if callback is not None and callback(Iterate(run.steps, run.losses[-1], now, driver.factors(run.best)[0])):
                stopped = f"the callback ended it after {run.steps} steps"
            windows += 1
            if store and (stopped or windows % store.every == 0):
                store.save(driver.saved(run))
    history = History(np.arange(1, run.steps + 1), np.array(run.losses), np.array(run.seconds))
    W, G = driver.factors(run.best)
    return Outcome(W, G, fetch(driver.products(run.best)[1]), history, stopped)


class _Driver:
    """The compiled functions of a solver on one problem.

    The argument ``at`` of its methods is either a state of the solver or `Factors`, from which `Solver.init` makes one.
    """

    def __init__(self, solver: Solver, problem: Problem, start: Factors, stopping: Stopping) -> None:
        if problem.origin is None:
            raise ValueError("got a Problem from inside a compiled step; pass the one that Problem.of returned")
        self.solver, self.problem, self.origin, self.window = solver, problem, problem.origin, stopping.window
        self.device, self.mesh = problem.on_device(), problem.rows.mesh
        self.offset = int(start.steps)  # steps that the solver counts as done at the start
        self.n_free = start.W.shape[1] - problem.n_kept
        self.exchanges = solver.exchanges if self.n_free else 0  # frozen and named components are never replaced

    def factors(self, at: Any) -> tuple[jax.Array, Vectors]:
        """Return W and G."""
        return at[:2] if isinstance(at, Factors) else self.solver.factors(at)

    def products(self, at: Any) -> tuple[jax.Array, jax.Array]:
        """Return A Gᵀ and G Gᵀ."""
        return _products(self.device, at, solver=self.solver, fresh=isinstance(at, Factors))

    def advance(self, at: Any, limits: Limits, done: int, exchange: Exchange | None) -> tuple[Any, np.ndarray]:
        """Run a window of steps, and return the state and the loss after each step."""
        fresh = self.solver.restarts or exchange is not None or isinstance(at, Factors)
        if fresh:
            W, G = self.factors(at)
            at = Factors(W, G, self.scalar(done + self.offset))
            if exchange is None and self.exchanges > 0:  # one compiled program with and without an exchange
                free = min(self.n_free, self.problem.n_examples)
                exchange = self.places(jax.lax.slice_in_dim(G, G.shape[0] - free, None), {})
        on_device = Limits(self.scalar(limits.count), *(self.scalar(x, np.float32) for x in limits[1:]))
        state, terms, count = _advance(
            self.device, at, exchange, on_device, solver=self.solver, window=self.window, fresh=fresh
        )
        return state, relative_loss(fetch(terms)[: int(fetch(count))], self.origin.squared_norm)

    def exchange(self, run: Run) -> tuple[int, Exchange | None]:
        """Return how many components the next trial replaces, and the exchange; (0, None) if none is worth trying."""
        search = run.search
        if search.offer is None:
            search.offer = make_offer(self.problem, *self.factors(run.best))
        replacements = search.replacements(self.n_free)
        return len(replacements), self.places(search.offer.vectors, replacements) if replacements else None

    def still_pays(self, run: Run) -> bool:
        """Return whether the last exchange lowered the loss and another one is expected to."""
        search = run.search
        if not (self.exchanges > 0 and search.paid and not search.over):
            return False
        offer = search.offer or make_offer(self.problem, *self.factors(run.best))
        return bool(np.any(offer.gains > offer.costs))

    def limit(self, run: Run) -> str:
        """Return the setting that prevented further exchanges."""
        used_up = run.trials >= self.exchanges
        return f"exchanges={self.exchanges} of {type(self.solver).__name__}" if used_up else f"max_steps={run.steps}"

    def places(self, vectors: Vectors, replacements: dict[int, int]) -> Exchange:
        """Return the exchange that replaces components (keys) by candidates (values), on the devices."""
        source = np.full(self.n_free + self.problem.n_kept, -1, np.int32)
        for component, candidate in replacements.items():
            source[component] = candidate
        return vectors, replicate(source, self.mesh)

    def scalar(self, value: float | int, dtype: Any = np.int32) -> jax.Array:
        """Replicate a number over the devices, which avoids an implicit transfer in each call."""
        return replicate(np.asarray(value, dtype), self.mesh)

    def cause(self, state: Any, step: int, kept: int) -> str:
        """Return why the run ended at a non-finite value, as a sentence."""
        G_is_finite = np.isfinite(fetch(self.products(state)[1])).all()
        broken = "the coefficients" if G_is_finite else "the pseudo-Fishers"
        return (
            f"non-finite: {broken} overflowed at step {step} of {type(self.solver).__name__}; {self.solver.remedy}. "
            f"This result is the last good state, after {kept} steps"
        )

    def saved(self, run: Run) -> Saved:
        """Return the checkpoint of a run: the factors, and the solver's state unless they determine it."""
        W, G = self.factors(run.best)
        leaves = [] if self.solver.restarts else jax.tree.leaves(run.best)
        return Saved(
            W=fetch(W),
            G=self.problem.rows.to_host(G),
            losses=np.array(run.losses),
            seconds=np.array(run.seconds),
            counters=np.array([run.trials, run.since, *run.search.counters]),
            state=tuple(fetch(leaf) for leaf in leaves),
        )

    def resumed(self, saved: Saved | None, start: Factors) -> Run:
        """Return a run that continues from a checkpoint, or a new run without one."""
        if saved is None:
            return Run(start)
        if self.solver.restarts:
            G = self.problem.rows.from_host(saved.G)
            best: Any = Factors(replicate(saved.W, self.mesh), G, self.scalar(len(saved.losses) + self.offset))
        else:
            first, _ = self.advance(start, Limits(0, np.inf, -np.inf), 0, None)
            leaves, tree = jax.tree.flatten(first)
            shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
            if shapes != [(leaf.shape, leaf.dtype) for leaf in saved.state]:
                raise ValueError(
                    f"the checkpoints hold a state of {type(self.solver).__name__} with arrays of other shapes; resume "
                    "with as many devices as the run began with"
                )
            placed = [place(old, leaf.sharding) for old, leaf in zip(saved.state, leaves, strict=True)]
            best = jax.tree.unflatten(tree, placed)
        trials, since, *search = saved.counters.tolist()
        return Run(best, Search.resume(search), trials, since, saved.losses.tolist(), saved.seconds.tolist())


@functools.partial(jit, static_argnames=("solver", "window", "fresh"))
def _advance(
    problem: Problem,
    at: Any,
    exchange: Exchange | None,
    limits: Limits,
    *,
    solver: Solver,
    window: int,
    fresh: bool,
) -> tuple[Any, jax.Array, jax.Array]:
    """Run a window of steps; return the state, the loss terms after each step, (window, 2, r), and the number of steps.

    Args:
        problem: the problem to factorize.
        at: a state of the solver, or, if ``fresh``, factors from which a state is made.
        exchange: replacement of components before the first step.
        limits: when the window ends.
        solver: the solver.
        window: first dimension of the loss terms.
        fresh: whether ``at`` holds factors.
    """
    if fresh:
        W, G, steps = at
        if exchange is not None:
            new, source = exchange
            W = jnp.where((source >= 0)[None], 0, W)
            G = jnp.where((source >= 0)[:, None], new[jnp.maximum(source, 0)], G)
        at = solver.init(problem, Factors(W, G, steps))

    def goes_on(carry: tuple[Any, ...]) -> jax.Array:
        k, _, terms = carry
        return (k < limits.count) & ((k < EARLIEST) | ~_decided(terms, k, limits, problem.squared_norm))

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        k, state, terms = carry
        state = solver.step(problem, state)
        return k + 1, state, terms.at[k].set(solver.loss_terms(problem, state))

    r = solver.factors(at)[0].shape[1]
    k, state, terms = jax.lax.while_loop(
        goes_on, body, (jnp.zeros((), jnp.int32), at, jnp.zeros((window, 2, r), jnp.float32))
    )
    return state, terms, k


def _decided(terms: jax.Array, k: jax.Array, limits: Limits, squared_norm: Any) -> jax.Array:
    """Return whether the outcome of a window is clear after ``k`` of its steps."""

    def relative(terms: jax.Array) -> jax.Array:
        return jnp.sum(terms[1] - 2 * terms[0]) / squared_norm

    now = 1 + relative(terms[k - 1])
    # Differences per component first: the sums nearly cancel.
    fell, before = relative(terms[k - 2] - terms[k - 1]), relative(terms[k - 3] - terms[k - 2])
    left = (limits.count - k).astype(now.dtype)
    hopeless = now - HOPE * jnp.maximum(fell, 0) * left >= limits.target
    return hopeless | (jnp.maximum(fell, before) < limits.floor * now)


@functools.partial(jit, static_argnames=("solver", "fresh"))
def _products(problem: Problem, at: Any, *, solver: Solver, fresh: bool) -> tuple[jax.Array, jax.Array]:
    """Return A Gᵀ and G Gᵀ of a state, or, if ``fresh``, of factors."""
    return problem.products(at.G) if fresh else solver.products(problem, at)
