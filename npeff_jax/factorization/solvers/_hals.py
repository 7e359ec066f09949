"""D-NPEFF: non-negative matrix factorization of the (n, m') matrix X of diagonal PEFs, X ≈ W H.

W-step   non-negative least squares with Gram matrix H Hᵀ and numerator X Hᵀ
H-step   non-negative least squares per column of X with Gram matrix WᵀW and numerator Wᵀ X; columns are independent,
         so shards of columns need no communication

X Hᵀ and Wᵀ X dominate the cost of a step, so HALS uses each for several sweeps (Gillis & Glineur 2012).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from npeff_jax._checks import check_integer, normalise
from npeff_jax._sharding import SHARDS
from npeff_jax._types import Coefficients, ComponentGram, RowProducts
from npeff_jax.factorization._compile import full_precision
from npeff_jax.factorization._nonnegative import hals_sweep
from npeff_jax.factorization._objective import loss_terms
from npeff_jax.factorization._problem import Problem
from npeff_jax.factorization.row_spaces import Vectors
from npeff_jax.factorization.solvers._base import Factors, InitialFactors, Solver, fit_to_given, solve_for_given
from npeff_jax.pefs import FisherKind


class DiagonalState(NamedTuple):
    """W and H, with the products of H.

    Attributes:
        W: coefficients.
        H: vectors.
        XH: X Hᵀ, per row.
        HH: H Hᵀ.
        steps: number of steps done.
    """

    W: Coefficients
    H: Vectors
    XH: RowProducts
    HH: ComponentGram
    steps: Any


class DiagonalSolver(Solver):
    """Base class of the solvers of diagonal problems, whose state is determined by W and H."""

    kind = FisherKind.DIAGONAL
    restarts = True
    supports: tuple[str, ...] = ("frozen",)

    @full_precision
    def init(self, problem: Problem, start: Factors) -> DiagonalState:
        return DiagonalState(start.W, start.G, *problem.products(start.G), start.steps)

    def factors(self, state: DiagonalState) -> tuple[Coefficients, Vectors]:
        return state.W, state.H

    def products(self, problem: Problem, state: DiagonalState) -> tuple[RowProducts, ComponentGram]:
        return state.XH, state.HH

    @full_precision
    def loss_terms(self, problem: Problem, state: DiagonalState) -> Float[Array, "2 r"]:
        return loss_terms(state.W, problem.sum_over_rows(state.XH), state.HH, problem.tie_penalty(state.W))


SWEPT = 8192
"""Coordinates of H that are updated together: 2 MB with 64 components, which fit the cache."""


@dataclasses.dataclass(frozen=True)
class HALS(DiagonalSolver):
    """D-NPEFF by hierarchical alternating least squares: one exact column after the other.

    Attributes:
        sweeps: number of sweeps over W and over H per step, with the same products with X. More sweeps come closer to
            the exact minimiser within the window after which an exchange is judged (final losses are lower with four
            than with two, and hardly lower with eight).
        exchanges: as for `DampedALS`.
        warm_up: as for `DampedALS`. The problem of H for fixed W is convex, so a few steps suffice.
    """

    sweeps: int = 4
    exchanges: int = 100
    warm_up: int = 3

    supports = ("frozen", "tunings")

    def __post_init__(self) -> None:
        super().__post_init__()
        normalise(
            self,
            sweeps=check_integer("sweeps", self.sweeps),
            exchanges=check_integer("exchanges", self.exchanges, 0),
            warm_up=check_integer("warm_up", self.warm_up, 0),
        )

    def start(self, problem: Problem, n_components: int, seed: int, given: InitialFactors) -> Factors:
        start = fit_to_given(problem, super().start(problem, n_components, seed, given), given)
        return solve_for_given(self, problem, start, given, type(self).warm_up)

    @full_precision
    def step(self, problem: Problem, state: DiagonalState) -> DiagonalState:
        """Move W, then H. Protected components, which come first, keep their vectors."""
        W, H, XH, HH, steps = state
        f = problem.n_frozen
        b = problem.sum_over_rows(XH)
        swept = jax.lax.fori_loop(0, self.sweeps, lambda _, W: problem.sweep(W, b, HH), W)
        W = jnp.where(steps < self.warm_up, W, swept)
        free, WW = W[:, f:], W.T @ W
        if problem.ties is not None:  # the penalty λ ‖W_j − s_j m‖² ‖h_j‖² adds to the diagonal of WᵀW
            WW = WW + jnp.diag(problem.tie_penalty(W))
        # Subtract the contribution of the protected components; the rest is a smaller problem of the same kind.
        numerator = problem.rows.pull_back(problem.over_rows(free))
        if f:
            numerator = numerator - WW[f:, :f] @ H[:f]
        moved = sweep_vectors(H[f:] if f else H, numerator, WW[f:, f:], self.sweeps, problem.rows.mesh)
        return self.init(problem, Factors(W, jnp.concatenate([H[:f], moved]) if f else moved, steps + 1))


def sweep(V: Float[Array, "rows r"], b: Float[Array, "rows r"], P: ComponentGram, times: int) -> Float[Array, "rows r"]:
    """Return V after ``times`` HALS sweeps with the same products."""
    return jax.lax.fori_loop(0, times, lambda _, V: hals_sweep(V, b, P), V)


def sweep_vectors(
    H: Float[Array, "r size"], b: Float[Array, "r size"], P: ComponentGram, times: int, mesh: Mesh
) -> Float[Array, "r size"]:
    """Return H after HALS sweeps over its components, in blocks of `SWEPT` coordinates.

    Coordinates are independent, so each device updates its own, and all sweeps of a block are done at once, which reads
    and writes H once.

    Args:
        H: vectors.
        b: Wᵀ X.
        P: WᵀW.
        times: number of sweeps.
        mesh: one axis, over which coordinates are sharded if it divides their number.
    """

    def on_shard(H: jax.Array, b: jax.Array, P: jax.Array) -> jax.Array:
        size = H.shape[1]
        width = min(SWEPT, size)

        def sweep_block(first: Any, width: int, H: jax.Array) -> jax.Array:
            own, numerator = (jax.lax.dynamic_slice_in_dim(x, first, width, axis=1) for x in (H, b))
            swept = sweep(own.T, numerator.T, P, times).T
            return jax.lax.dynamic_update_slice_in_dim(H, swept, first, axis=1)

        H = jax.lax.fori_loop(0, size // width, lambda k, H: sweep_block(k * width, width, H), H)
        rest = size % width
        return sweep_block(size - rest, rest, H) if rest else H

    if mesh.size == 1 or H.shape[1] % mesh.size:
        return on_shard(H, b, P)
    split = PartitionSpec(None, SHARDS)
    return jax.shard_map(
        on_shard, mesh=mesh, in_specs=(split, split, PartitionSpec()), out_specs=split, check_vma=False
    )(H, b, P)
