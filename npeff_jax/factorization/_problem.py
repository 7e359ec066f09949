"""`Problem`: the factorization problem that a solver works on."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from npeff_jax._progress import Progress
from npeff_jax._sharding import factorization_mesh, fetch, replicate
from npeff_jax._types import Coefficients, ComponentGram, RowProducts
from npeff_jax.factorization._compile import jit
from npeff_jax.factorization._nonnegative import hals_sweep
from npeff_jax.factorization._objective import Members, loss_terms, members_of, sum_over_rows
from npeff_jax.factorization._origin import SKETCHED, Components, Origin, schema_of_model
from npeff_jax.factorization._stack import Stack, stack, stack_rows
from npeff_jax.factorization._tunings import Ties, Tuning, tie_penalty, tied_sweep, ties_of
from npeff_jax.factorization.row_spaces import (
    ModelRows,
    ProductPrecision,
    RowChoice,
    RowSpace,
    Vectors,
    check_rows,
    choose,
    kernel_of_model,
    matmul,
)
from npeff_jax.pefs import FisherKind, Pefs, Schema


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows", "owner", "members", "squared_norm", "frozen", "ties"],
    meta_fields=["kind", "n_examples", "origin", "names"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Rows A in a row space, the example of each row, and norms: F_i = Σ a aᵀ over the rows a of example i (eq. 1).

    A pytree: pass it to your own ``jit``, minimise `loss` with optax, and convert the factors to a result with
    `Decomposition.from_factors`. A solver that does not support protected components or tunings rejects a problem that
    has them.

    Attributes:
        rows: A, in a row space.
        owner: (N,), the example of each row, ascending.
        members: index tables of the rows of each example, from `members_of`.
        squared_norm: ‖F‖² before pruning, the unit of the loss.
        kind: low-rank or diagonal.
        n_examples: n.
        origin: host-side data for the result; None inside compiled steps.
        frozen: (f, size), vectors of the first f components, in coordinates, which stay fixed; or None.
        ties: ties of the named components to their marks; or None. Named components come after the protected ones.
        names: names of the named components.

    Examples:
        >>> problem = Problem.of(npeff_jax.tasks.planted().pefs, n_components=3)
        >>> start = DampedALS().start(problem, 3, 0, InitialFactors())
        >>> loss, (by_W, by_G) = jax.value_and_grad(problem.loss, argnums=(0, 1))(start.W, start.G)
        >>> by_W.shape == start.W.shape, by_G.shape == start.G.shape
        (True, True)
    """

    rows: RowSpace
    owner: Any
    members: Any
    squared_norm: Any
    kind: FisherKind
    n_examples: int
    origin: Origin | None = None
    frozen: Any = None
    ties: Ties | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        pefs: Pefs | ModelRows,
        *,
        rows: RowChoice | None = None,
        n_components: int = 64,
        mesh: Mesh | None = None,
        products: ProductPrecision = ProductPrecision.FLOAT32,
        min_count: int = 1,
        protected: Components | None = None,
        progress: Progress = False,
    ) -> "Problem":
        """Put the rows of PEFs, or of a model, on the devices.

        Args:
            pefs: PEFs from `compute_pefs`, or `model_rows`.
            rows: how the rows are held; by default as estimated to be fastest.
            n_components: r assumed by that estimate and by the size of blocks.
            mesh: devices to use; by default JAX's default device.
            products: precision of the large matrix products.
            min_count: parameters with fewer non-zeros over all rows are pruned.
            protected: components whose vectors stay fixed, such as a `Decomposition`. They come first.
            progress: as for `decompose`; shown while the kernel of a model is computed.

        Raises:
            ValueError: no examples, non-finite values, no parameters left after pruning, or rows that exceed memory.
            TypeError: ``pefs`` is neither PEFs nor rows of a model.
        """
        if isinstance(pefs, ModelRows):
            return _of_model(pefs, mesh, progress)
        if not isinstance(pefs, Pefs):
            raise TypeError(
                f"pefs is a {type(pefs).__name__}; pass one Pefs (of compute_pefs or load_pefs) or model_rows"
            )
        check_rows(rows, pefs.schema.kind)
        stacked = stack(pefs, min_count=min_count)
        frozen = None
        if protected is not None:
            # parameters of protected components are kept even if no row of these examples uses them
            columns = np.union1d(protected.parameter_indices, stacked.parameter_indices)
            stacked = stack(pefs, parameter_indices=columns)
            frozen = np.zeros((len(protected.pseudo_fishers), len(columns)), np.float32)
            frozen[:, np.searchsorted(columns, protected.parameter_indices)] = protected.pseudo_fishers[:]
        return of_stack(stacked, pefs.schema, rows, n_components, mesh, products, frozen)

    @classmethod
    def from_rows(
        cls,
        A: Any,
        owner: Any,
        *,
        kind: FisherKind = FisherKind.LOW_RANK,
        rows: RowChoice | None = None,
        n_components: int = 64,
        mesh: Mesh | None = None,
        products: ProductPrecision = ProductPrecision.FLOAT32,
    ) -> "Problem":
        """Make a problem from given rows.

        Args:
            A: (N, m), an array or a SciPy sparse matrix.
            owner: (N,), the example of each row: integers from 0, ascending.
            kind: `LOW_RANK` for F_i = Σ a aᵀ, or `DIAGONAL` for F_i = Diag(a) with one row per example.
            rows: as for `of`.
            n_components: as for `of`.
            mesh: as for `of`.
            products: as for `of`.

        Raises:
            ValueError: wrong shapes, unsorted rows, non-finite values, or several rows per example of a diagonal kind.
        """
        stacked, schema = stack_rows(A, owner, kind)
        return of_stack(stacked, schema, rows, n_components, mesh, products, None)

    @property
    def n_frozen(self) -> int:
        """f, the number of protected components, which come first."""
        return 0 if self.frozen is None else self.frozen.shape[0]

    @property
    def n_named(self) -> int:
        """t, the number of named components, which come after the protected ones."""
        return 0 if self.ties is None else self.ties.pattern.shape[1]

    @property
    def n_kept(self) -> int:
        """Number of components, f + t, that keep their position and are never exchanged."""
        return self.n_frozen + self.n_named

    def with_tunings(self, tunings: Sequence[Tuning]) -> "Problem":
        """Return a copy of the problem with named components, whose coefficients follow the marks of the tunings."""
        if not tunings:
            return self
        ties = Ties(*(replicate(array, self.rows.mesh) for array in ties_of(tunings)))
        return dataclasses.replace(self, ties=ties, names=tuple(tuning.name for tuning in tunings))

    @property
    def has_rows(self) -> Bool[np.ndarray, "n"]:
        """(n,), whether each example has rows; others have a zero PEF, or failed."""
        return np.bincount(self._host.owner, minlength=self.n_examples) > 0

    @property
    def _host(self) -> Origin:
        if self.origin is None:
            raise ValueError("got a Problem from inside a compiled step; use the one that Problem.of returned")
        return self.origin

    @property
    def parts(self) -> tuple[str, ...]:
        """Optional parts of this problem: "frozen", "tunings"."""
        present = {"frozen": self.n_frozen > 0, "tunings": self.ties is not None}
        return tuple(name for name, there in present.items() if there)

    def on_device(self) -> "Problem":
        """Return a copy without host-side data, for compiled steps (whose caches keep their arguments alive)."""
        return dataclasses.replace(self, rows=self.rows.on_device(), origin=None, names=())

    def over_rows(self, W: Coefficients) -> RowProducts:
        """Repeat the coefficients of each example over its rows: (n, r) to (N, r)."""
        return W[self.owner] if self.members else W

    def sum_over_rows(self, x: RowProducts) -> Coefficients:
        """Sum over the rows of each example: (N, r) to (n, r)."""
        return sum_over_rows(x, self.members)

    def products(self, G: Vectors) -> tuple[RowProducts, ComponentGram]:
        """Return A Gᵀ (N, r) and G Gᵀ (r, r)."""
        AG, GG, _ = self.rows.inner(G, G)
        return AG, GG

    def least_squares(self, AG: RowProducts, GG: ComponentGram) -> tuple[Coefficients, ComponentGram]:
        """Return b (n, r) and P (r, r) of the least-squares problem of W: min_W≥0 Σ_i w_i P w_iᵀ − 2 w_i·b_i.

        b_ij = Σ_rows (a·g_j)² and P_jk = (g_j·g_k)² for low-rank problems; b = X Hᵀ and P = H Hᵀ for diagonal ones.
        """
        if self.kind is FisherKind.LOW_RANK:
            return self.sum_over_rows(AG * AG), GG * GG
        return self.sum_over_rows(AG), GG

    def sweep(self, W: Coefficients, b: Coefficients, P: ComponentGram) -> Coefficients:
        """Return W after one pass of exact coordinate updates, under the ties of named components."""
        return hals_sweep(W, b, P) if self.ties is None else tied_sweep(W, b, P, self.ties, self.n_frozen)

    def tie_penalty(self, W: Coefficients) -> Float[Array, "r"] | float:
        """Return the penalty of the ties, which adds to the diagonal of WᵀW (see `tie_penalty`); 0 without ties."""
        if self.ties is None:
            return 0.0
        f, t = self.n_frozen, self.n_named
        return jnp.zeros(W.shape[1], W.dtype).at[f : f + t].set(tie_penalty(W[:, f : f + t], self.ties))

    def loss(self, W: Coefficients, G: Vectors) -> Float[Array, ""]:
        """Return ‖F − Σ_j W_j H_j‖² / ‖F‖² in float32 (eq. 4), with H_j = g_j g_jᵀ or Diag(h_j).

        Pure, and differentiable in W and G. Near a perfect fit, cancellation leaves an error of about 1e-6.

        Args:
            W: (n, r), coefficients.
            G: (r, size), vectors in the coordinates of ``rows``.
        """
        return _loss(self.on_device(), W, G)

    def gradient(self, W: Coefficients, G: Vectors) -> tuple[Coefficients, Vectors]:
        """Return the gradient of `loss` with respect to W and to the vectors, the latter in coordinates.

        In the kernel form this is the gradient with respect to the vectors, expressed in coordinates. Automatic
        differentiation gives the gradient with respect to the coordinates, which has the Gram matrix as a factor.
        """
        return _gradient(self.on_device(), W, G)


@jit
def _loss(problem: Problem, W: Coefficients, G: Vectors) -> Float[Array, ""]:
    b, P = problem.least_squares(*problem.products(G))
    terms = loss_terms(W, b, P)
    return 1 + (jnp.sum(terms[1]) - 2 * jnp.sum(terms[0])) / problem.squared_norm


@jit
def _gradient(problem: Problem, W: Coefficients, G: Vectors) -> tuple[Coefficients, Vectors]:
    AG, GG = problem.products(G)
    b, P = problem.least_squares(AG, GG)
    by_W = 2 * (matmul(W, P) - b)
    if problem.kind is FisherKind.LOW_RANK:
        by_G = 4 * (matmul(matmul(W.T, W) * GG, G) - problem.rows.pull_back(problem.over_rows(W) * AG))
    else:
        by_G = 2 * (matmul(matmul(W.T, W), G) - problem.rows.pull_back(problem.over_rows(W)))
    return by_W / problem.squared_norm, by_G / problem.squared_norm


def of_stack(
    stacked: Stack,
    schema: Schema,
    rows: RowChoice | None,
    n_components: int,
    mesh: Mesh | None,
    products: ProductPrecision,
    frozen: Float[np.ndarray, "f m_kept"] | None,
) -> Problem:
    """Make a problem from stacked rows, in the given row space or the one of least estimated cost."""
    line = factorization_mesh(mesh)
    choice, reason = choose(stacked.A, n_components, schema.kind, line, rows)
    space = choice.of(stacked.A, line, n_components=n_components, products=products, frozen=frozen)
    notes = {"row_space": reason, "products": products.value, "lost_energy": stacked.lost_energy, **space.notes}
    if not choice.exact:
        notes["history"] = SKETCHED
    if len(stacked.failed):
        notes["failed_examples"] = len(stacked.failed)
    return _problem(
        space, stacked.owner, stacked.energy, stacked.n_examples, stacked.squared_norm, schema,
        stacked.parameter_indices, notes, frozen, exact=choice.exact,
    )  # fmt: skip


def _of_model(source: ModelRows, mesh: Mesh | None, progress: Progress) -> Problem:
    """Make the problem of a model's exact rows, in kernel form, without sparsification."""
    n, c = source.n_examples, source.rows_per_example
    rows, norms = kernel_of_model(source, factorization_mesh(mesh), progress)
    if not np.isfinite(norms).all():
        bad = int(np.flatnonzero(~np.isfinite(norms))[0])
        raise ValueError(f"the Fisher of example {bad} is not finite; clean or drop it")
    notes = {"row_space": "the model itself: exact kernel by backward passes", "lost_energy": 0.0}
    owner, energy = np.repeat(np.arange(n), c), fetch(jnp.diagonal(rows.Q))[: n * c]
    columns = np.arange(source.model.space.size)
    squared_norm = float((norms > 0).sum())
    return _problem(rows, owner, energy, n, squared_norm, schema_of_model(source), columns, notes, None, exact=True)


def _problem(
    rows: RowSpace,
    owner: np.ndarray,
    energy: np.ndarray,
    n: int,
    squared_norm: float,
    schema: Schema,
    columns: np.ndarray,
    notes: dict[str, Any],
    frozen: np.ndarray | None,
    *,
    exact: bool,
) -> Problem:
    if not squared_norm > 0:
        raise ValueError("all of these Fishers are zero: no gradient reaches any parameter; check the model function")
    host = np.zeros((0, len(columns)), np.float32) if frozen is None else frozen
    members: Members = tuple(replicate(table, rows.mesh) for table in members_of(owner, n))
    return Problem(
        rows=rows,
        owner=replicate(owner.astype(np.int32), rows.mesh),
        members=members,
        squared_norm=replicate(np.asarray(squared_norm, np.float32), rows.mesh),
        kind=schema.kind,
        n_examples=n,
        origin=Origin(schema, columns, squared_norm, owner, energy, host, exact, notes),
        frozen=None if frozen is None else rows.coordinates(frozen),
    )
