"""The kernel form, whose iterations do not depend on the number of parameters.

Projecting G onto the row space of A changes no cross term of the loss and never increases the quadratic one, so
G = U A loses nothing. With Q = A Aᵀ every product is one of U with Q, and the direction B G − Mᵀ A is B U − Mᵀ in
coordinates. With frozen components the row space is that of [A; G_frozen]; with A alone, losses are up to 2.4% higher.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from npeff_jax._checks import check_integer, normalise
from npeff_jax._sharding import SHARDS, fetch, place, sharded
from npeff_jax._types import RowProducts
from npeff_jax.factorization.row_spaces._base import (
    Cost,
    Inner,
    Leaf,
    ProductPrecision,
    RowChoice,
    RowSpace,
    Vectors,
    matmul,
)
from npeff_jax.factorization.row_spaces._blocks import BlockedRows
from npeff_jax.factorization.row_spaces._device_gram import device_gram, device_gram_bytes, device_gram_seconds
from npeff_jax.factorization.row_spaces._gram import gram, gram_bytes, gram_seconds
from npeff_jax.factorization.row_spaces._rates import pull_seconds, rates
from npeff_jax.factorization.row_spaces._sketched import sketched_cost, sketched_space
from npeff_jax.pefs import FisherKind


@dataclasses.dataclass(frozen=True)
class KernelRows(RowChoice):
    """Hold the N×N Gram matrix of the rows, so that iterations do not depend on m'. For low-rank PEFs only.

    Attributes:
        sketch: number of columns of a random sketch that approximates the Gram matrix, with N · ``sketch`` numbers
            instead of N². The error is measured and reported. The losses of the history are then those of the sketched
            problem; coefficients and loss of the result are recomputed from the rows themselves.
    """

    sketch: int | None = None
    kinds = (FisherKind.LOW_RANK,)

    def __post_init__(self) -> None:
        if self.sketch is not None:
            normalise(self, sketch=check_integer("sketch", self.sketch))

    @property
    def exact(self) -> bool:
        return self.sketch is None

    def cost(self, A: BlockedRows, n_components: int, mesh: Mesh) -> Cost:
        if self.sketch is not None:
            return sketched_cost(A, self.sketch, n_components, mesh)
        (N, m), nnz, r, speed = A.shape, float(A.nnz), n_components, rates(mesh)
        step = (2 * N * N * r + 48 * N * r * r) / speed.dense + 4.0 * N * N / speed.stream  # narrow products are slower
        on_host = made_by_host(mesh)
        once = (gram_seconds if on_host else device_gram_seconds)(A, mesh) + pull_seconds(nnz, r, m, mesh)
        memory = 4.0 * N * N + max(40.0 * r * N, 0.0 if on_host else device_gram_bytes(N, mesh))
        return Cost.of_steps(step, once, memory, max(gram_bytes(A), A.pull_bytes(r)))

    def of(
        self,
        A: BlockedRows,
        mesh: Mesh,
        *,
        n_components: int = 64,
        products: ProductPrecision = ProductPrecision.FLOAT32,
        frozen: np.ndarray | None = None,
    ) -> RowSpace:
        recover = Recover(A.pull, np.zeros((0, A.shape[1]), np.float32) if frozen is None else frozen)
        if self.sketch is None:
            Q = (gram if made_by_host(mesh) else device_gram)(A, mesh, frozen)
            return KernelSpace(Q.astype(products.value), mesh, A.shape[0], recover)
        if frozen is not None:
            raise ValueError(
                "the sketched kernel cannot hold frozen components; expand with KernelRows() or SparseRows()"
            )
        return sketched_space(A, mesh, self.sketch)


def made_by_host(mesh: Mesh) -> bool:
    """Return whether the host computes the Gram matrix, as it does if the devices are CPUs."""
    return bool(mesh.devices.flat[0].platform == "cpu")


@dataclasses.dataclass(frozen=True, eq=False)
class Recover:
    """Data to convert coefficients in the rows of [A; G_frozen] to vectors, after the iterations.

    Attributes:
        pull: function from U (r, N) to U A (r, m').
        frozen: G_frozen, (f, m').
    """

    pull: Callable[[np.ndarray], np.ndarray]
    frozen: Float[np.ndarray, "f m_kept"]

    def __call__(self, U: np.ndarray, N: int) -> np.ndarray:
        G = self.pull(U[:, :N])
        f = len(self.frozen)
        return G + U[:, N : N + f] @ self.frozen if f else G


@functools.partial(jax.tree_util.register_dataclass, data_fields=["Q"], meta_fields=["mesh", "N", "recover"])
@dataclasses.dataclass(frozen=True, eq=False)
class KernelSpace(RowSpace):
    """Q with rows sharded over the mesh. The coordinates of a vector are its coefficients in the rows of [A; G_frozen].

    Attributes:
        Q: Gram matrix of [A; G_frozen], padded with zeros to a multiple of the mesh.
        mesh: one axis, `SHARDS`.
        N: number of rows of A.
        recover: conversion from U to vectors; None inside compiled steps.
    """

    Q: Leaf
    mesh: Mesh
    N: int
    recover: Recover | None

    @property
    def n_rows(self) -> int:
        return self.N

    def inner(self, G: Vectors, D: Vectors) -> Inner:
        @functools.partial(
            jax.shard_map, mesh=self.mesh, in_specs=(P(SHARDS, None), P()), out_specs=P(), check_vma=False
        )
        def on_shard(Q: jax.Array, D: jax.Array) -> jax.Array:
            return jax.lax.all_gather(matmul(Q, D.T.astype(Q.dtype)), SHARDS, tiled=True)

        QD = on_shard(self.Q, D)
        return QD[: self.N], matmul(G, QD), matmul(D, QD)

    def pull_back(self, M: RowProducts) -> Vectors:
        return jnp.pad(M.T, ((0, 0), (0, self.Q.shape[0] - self.N)))

    def expand(self, vectors: Vectors) -> np.ndarray:
        return self._recover(fetch(vectors), self.N)

    def coordinates(self, vectors: np.ndarray) -> Vectors:
        """Return the coordinates of the frozen vectors: unit vectors, since these are further rows.

        Raises:
            ValueError: ``vectors`` are not the frozen vectors.
        """
        if not np.array_equal(vectors, self._recover.frozen):
            raise ValueError(
                "the kernel form cannot start from given pseudo-Fishers, which need not be combinations of the rows; "
                "pass rows=DenseRows() or rows=SparseRows(), or start from coefficients"
            )
        unit = np.zeros((len(vectors), self.Q.shape[0]), np.float32)
        unit[np.arange(len(vectors)), self.N + np.arange(len(vectors))] = 1.0
        return place(unit, sharded(self.mesh))

    def to_host(self, vectors: Vectors) -> np.ndarray:
        return fetch(vectors)[:, : self.N + len(self._recover.frozen)]

    def from_host(self, saved: np.ndarray) -> Vectors:
        padded = np.pad(saved, ((0, 0), (0, self.Q.shape[0] - saved.shape[1])))
        return place(padded, sharded(self.mesh))

    def on_device(self) -> "KernelSpace":
        return dataclasses.replace(self, recover=None)

    @property
    def _recover(self) -> Recover:
        if self.recover is None:
            raise ValueError("got a KernelSpace from inside a compiled step, without rows; use that of the Problem")
        return self.recover
