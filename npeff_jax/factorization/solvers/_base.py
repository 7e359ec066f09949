"""The protocol of solvers, and initial factors.

A solver is a frozen dataclass: its fields are its settings, and `init`, `step` and `factors` are its algorithm. The
driver of `decompose` compiles a loop over `step` and does the rest (stopping, history, exchanges, checkpoints, the
guard against non-finite values). It does not depend on the class of a solver.
"""

import abc
import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from npeff_jax._sharding import fetch, replicate
from npeff_jax._types import Coefficients, ComponentGram, RowProducts
from npeff_jax.factorization._compile import jit
from npeff_jax.factorization._nonnegative import solve_nonnegative
from npeff_jax.factorization._objective import loss_terms
from npeff_jax.factorization._problem import Problem
from npeff_jax.factorization.row_spaces import Vectors
from npeff_jax.pefs import FisherKind

State = TypeVar("State")


@dataclasses.dataclass(frozen=True, eq=False)
class InitialFactors:
    """Factors to start from. A factor that is not given is drawn at random.

    Attributes:
        coefficients: W, (n, r), non-negative.
        pseudo_fishers: G or H over all m parameters, (r, m).
    """

    coefficients: Any = None
    pseudo_fishers: Any = None

    def __post_init__(self) -> None:
        for name in ("coefficients", "pseudo_fishers"):
            value = getattr(self, name)
            if value is None:
                continue
            array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
            if array.dtype.kind not in "biufV" or array.ndim != 2:  # V: bfloat16
                raise TypeError(
                    f"{name} has shape {array.shape} and dtype {array.dtype}; expected numbers, a row per "
                    f"{'example' if name == 'coefficients' else 'component'}"
                )

    @property
    def given(self) -> list[str]:
        """Names of the given factors."""
        return [name for name in ("coefficients", "pseudo_fishers") if getattr(self, name) is not None]


class Factors(NamedTuple):
    """Factors on the devices, from which `Solver.init` makes a state.

    Attributes:
        W: (n, r), coefficients.
        G: (r, size), vectors, in coordinates.
        steps: number of steps that count as done: 0, unless a run continues or the warm-up is skipped.
    """

    W: Coefficients
    G: Vectors
    steps: Any


class Solver(abc.ABC):
    """An algorithm for min ‖F − Σ_j W_j H_j‖² (eq. 4), with its settings as fields.

    A subclass is a frozen dataclass, hence hashable (a solver is static under ``jit``), with three methods:

        init(problem, start)    make the state, a pytree, from factors
        step(problem, state)    return the next state
        factors(state)          return W (n, r) and G (r, size), the latter in the coordinates of problem.rows

    All three are pure and are compiled together. `Problem` provides the products that they need. A subclass of a
    shipped solver may override `step` only.

    Attributes:
        kind: the kind of PEFs that the solver factorizes.
        supports: optional parts of a `Problem` that the solver respects: "frozen", "tunings".
        exchanges: maximum number of times that the driver replaces components to escape a local minimum.
        warm_up: number of initial steps whose losses do not count for stopping.
        restarts: whether W, G and the number of steps determine the state. If so, the driver calls `init` every
            ``Stopping.window`` steps, so that rounding errors of carried products do not accumulate, and checkpoints
            hold the factors only, so that a run may resume on other devices. Otherwise checkpoints hold the whole
            state.
        remedy: advice for users if values overflow.

    Examples:
        Projected gradient descent in ten lines:

        >>> @dataclasses.dataclass(frozen=True)
        ... class ProjectedGradient(Solver):
        ...     rate: float = 0.1
        ...     kind = FisherKind.DIAGONAL
        ...
        ...     def init(self, problem, start):
        ...         return start.W, start.G
        ...
        ...     def step(self, problem, state):
        ...         by_W, by_H = problem.gradient(*state)
        ...         return jnp.maximum(state[0] - self.rate * by_W, 0), jnp.maximum(state[1] - self.rate * by_H, 0)
        ...
        ...     def factors(self, state):
        ...         return state
    """

    kind: ClassVar[FisherKind]

    def __post_init__(self) -> None:
        """Convert NumPy scalars among the settings to Python scalars, because settings are recorded as JSON."""
        for name, value in list(vars(self).items()):
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())

    @property
    def supports(self) -> tuple[str, ...]:
        return ()

    @property
    def exchanges(self) -> int:
        return 0

    @property
    def warm_up(self) -> int:
        return 0

    @property
    def restarts(self) -> bool:
        return False

    @property
    def remedy(self) -> str:
        return "look for extreme values in the PEFs"

    @abc.abstractmethod
    def init(self, problem: Problem, start: Factors) -> Any:
        """Make a state, a pytree, from factors."""

    @abc.abstractmethod
    def step(self, problem: Problem, state: Any) -> Any:
        """Return the state after one more step."""

    @abc.abstractmethod
    def factors(self, state: Any) -> tuple[Coefficients, Vectors]:
        """Return W (n, r) and G (r, size), in coordinates."""

    def products(self, problem: Problem, state: Any) -> tuple[RowProducts, ComponentGram]:
        """Return A Gᵀ and G Gᵀ. Override it if the state holds them."""
        return problem.products(self.factors(state)[1])

    def loss_terms(self, problem: Problem, state: Any) -> Float[Array, "2 r"]:
        """Return the terms of the loss, as the function `loss_terms`. Override it if the state holds the products."""
        W = self.factors(state)[0]
        return loss_terms(W, *problem.least_squares(*self.products(problem, state)), problem.tie_penalty(W))

    def initial_coefficients(self, problem: Problem, n_components: int, seed: int) -> Float[np.ndarray, "n r"]:
        """Return the initial W. By default its entries are uniform in [0, 2/r), which suits examples of unit norm.

        A solver whose first step solves for W exactly may return zeros.
        """
        rng = np.random.default_rng([seed, 1])
        return rng.random((problem.n_examples, n_components), dtype=np.float32) * 2 / n_components

    def initial_vectors(self, problem: Problem, n_components: int, seed: int) -> Vectors:
        """Return the initial G: random unit vectors in the span of the rows, G = U A, the same in every row space.

        U is normal for low-rank problems. For diagonal problems each component is a sum of a few random rows, so that
        components differ, and a small part of every row, because a multiplicative update cannot change zeros.
        """
        rng, N = np.random.default_rng(seed), problem.rows.n_rows
        if problem.kind is FisherKind.DIAGONAL:
            U = np.full((N, n_components), 0.01 / N, np.float32)
            for j in range(n_components):
                np.add.at(U[:, j], rng.integers(N, size=5), rng.random(5, dtype=np.float32))
        else:
            U = rng.standard_normal((N, n_components), dtype=np.float32)
        return combine(problem.on_device(), replicate(U, problem.rows.mesh))

    def start(self, problem: Problem, n_components: int, seed: int, given: InitialFactors) -> Factors:
        """Return the factors that `init` starts from: the given ones, others drawn at random; protected vectors first.

        If only vectors are given, the warm-up is skipped, because it would fit them to a random W.
        """
        rows, f = problem.rows, problem.n_frozen
        W = given.coefficients
        if W is None:
            W = with_pattern(problem, self.initial_coefficients(problem, n_components, seed))
            W = W * problem.has_rows[:, None]  # examples without rows must not enter WᵀW
        if given.pseudo_fishers is None:
            G = self.initial_vectors(problem, n_components - f, seed)
        else:
            assert problem.origin is not None
            full = np.asarray(given.pseudo_fishers, np.float32)
            G = rows.coordinates(full[:, problem.origin.parameter_indices])
        if f:
            G = jnp.concatenate([problem.frozen, jax.lax.slice_in_dim(G, len(G) - (n_components - f), None)])
        W = replicate(np.asarray(W, np.float32), rows.mesh)
        done = self.warm_up if given.pseudo_fishers is not None and given.coefficients is None else 0
        return Factors(W, G, replicate(np.asarray(done, np.int32), rows.mesh))

    def check(self, kind: FisherKind, parts: tuple[str, ...]) -> None:
        """Raise ValueError if the solver does not support PEFs of ``kind``, or a problem with ``parts``."""
        name = type(self).__name__
        if kind is not self.kind:
            raise ValueError(f"solver={name} does not decompose {kind.value} PEFs; choose {self.alternatives(kind)}")
        missing = [part for part in parts if part not in self.supports]
        if missing:
            raise ValueError(
                f"solver={name} does not support the {' and '.join(missing)} of this problem; it supports "
                f"{', '.join(self.supports) or 'none of the optional parts'}: choose another solver or leave them out"
            )

    def alternatives(self, kind: FisherKind) -> str:
        """Return the solvers to propose for PEFs of ``kind``, as text."""
        return "DampedALS or GradientDescent" if kind is FisherKind.LOW_RANK else "HALS or Multiplicative"


def with_pattern(problem: Problem, W: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "n r"]:
    """Return W with the named columns set to their marks, zero where unknown.

    The warm-up then finds vectors that distinguish the marked examples from the others.
    """
    if problem.ties is None:
        return W
    return np.concatenate([W[:, : problem.n_frozen], fetch(problem.ties.pattern), W[:, problem.n_kept :]], axis=1)


def fit_to_given(problem: Problem, start: Factors, given: InitialFactors) -> Factors:
    """Return the start with W fitted to the vectors, if vectors are given and coefficients are not."""
    if given.pseudo_fishers is None or given.coefficients is not None:
        return start
    b, P = _least_squares(problem.on_device(), start.G)
    return start._replace(W=solve_nonnegative(jnp.zeros_like(start.W), b, P, FITTED, SWEEPS)[0])


def solve_for_given(solver: "Solver", problem: Problem, start: Factors, given: InitialFactors, steps: int) -> Factors:
    """Return the start with vectors solved for the given coefficients, if only coefficients are given.

    Otherwise the first step would fit the coefficients to random vectors. A warm-up of ``steps`` steps has the same
    effect; this function is for solvers with a shorter one.

    Args:
        solver: a dataclass with the field ``warm_up``.
        problem: the problem to factorize.
        start: the start, with random vectors.
        given: the factors that were given.
        steps: number of steps on the vectors.
    """
    if given.coefficients is None or given.pseudo_fishers is not None or solver.warm_up >= steps:
        return start
    return _solved(problem.on_device(), start, solver=dataclasses.replace(solver, warm_up=steps))  # type: ignore[type-var]


@functools.partial(jit, static_argnames=("solver",))
def _solved(problem: Problem, start: Factors, *, solver: Solver) -> Factors:
    """Run the warm-up of a solver. If values overflow, return the start, so that the first steps report it."""
    state = solver.init(problem, start)
    state = jax.lax.fori_loop(0, solver.warm_up, lambda _, state: solver.step(problem, state), state)
    W, G = solver.factors(state)
    finite = jnp.isfinite(W).all() & jnp.isfinite(G).all()
    return Factors(jnp.where(finite, W, start.W), jnp.where(finite, G, start.G), start.steps)


FITTED, SWEEPS = 1e-3, 100
"""Tolerance and maximum number of sweeps when W is fitted to given vectors."""


@jit
def _least_squares(problem: Problem, G: Vectors) -> tuple[Coefficients, ComponentGram]:
    """Return `Problem.least_squares` of the vectors ``G``."""
    return problem.least_squares(*problem.products(G))


@jit
def combine(problem: Problem, U: RowProducts) -> Vectors:
    """Return Uᵀ A with each vector scaled to unit norm."""
    G = problem.rows.pull_back(U)
    norm = jnp.sqrt(jnp.diagonal(problem.products(G)[1]))
    return G / jnp.where(norm > 0, norm, 1.0)[:, None]
