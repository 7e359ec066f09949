"""The kernel form: m is gone from the loop.

Projecting G on the row space of A changes no cross term of the loss and never raises the quadratic one, so G = U A
loses nothing. With Q = A Aᵀ every product is one of U with Q, and the direction B G − Mᵀ A is B U − Mᵀ in U. With
frozen components the row space is that of [A; G_frozen]: on A alone up to 2.4% of the loss would be lost.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from npeff_jax._sharding import SHARDS, fetch, place, sharded
from npeff_jax._types import RowProducts
from npeff_jax.factorization.rows._blocks import BlockedRows
from npeff_jax.factorization.rows._dense import matmul
from npeff_jax.factorization.rows._gram import gram
from npeff_jax.factorization.rows._protocol import Inner, Vectors


@dataclasses.dataclass(frozen=True)
class Recover:
    """How coefficients in the rows of [A; G_frozen] become vectors, once, after the iterations.

    All are equal to a compiled step, which never looks at them.

    Attributes:
        pull: (r, N) -> (r, m').
        frozen: G_frozen, (f, m').
    """

    pull: Callable[[np.ndarray], np.ndarray] = dataclasses.field(compare=False)
    frozen: np.ndarray = dataclasses.field(compare=False)

    @classmethod
    def of(cls, A: BlockedRows, frozen: np.ndarray | None = None) -> "Recover":
        """From stored rows: one sparse product."""
        return cls(A.pull, np.zeros((0, A.shape[1]), np.float32) if frozen is None else frozen)

    def __call__(self, U: np.ndarray, N: int) -> np.ndarray:
        G = self.pull(U[:, :N])
        f = len(self.frozen)
        return G + U[:, N : N + f] @ self.frozen if f else G


@functools.partial(jax.tree_util.register_dataclass, data_fields=["Q"], meta_fields=["mesh", "N", "recover"])
@dataclasses.dataclass(frozen=True, eq=False)
class KernelSpace:
    """Q, its rows sharded over the mesh. Coordinates of a vector are its coefficients in the rows of [A; G_frozen].

    Attributes:
        Q: Gram matrix of [A; G_frozen], padded with zeros to a multiple of the mesh.
        mesh: one axis, `SHARDS`.
        N: rows of A.
        recover: from U to vectors.
    """

    Q: jax.Array
    mesh: Mesh
    N: int
    recover: Recover

    @classmethod
    def of(cls, A: BlockedRows, mesh: Mesh, dtype: str = "float32", frozen: np.ndarray | None = None) -> "KernelSpace":
        """Accumulate Q from the rows, and from the frozen vectors (f, m') where there are some."""
        return cls(gram(A, mesh, frozen).astype(dtype), mesh, A.shape[0], Recover.of(A, frozen))

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

    def pull(self, M: RowProducts) -> Vectors:
        return jnp.pad(M.T, ((0, 0), (0, self.Q.shape[0] - self.N)))

    def expand(self, vectors: Vectors) -> np.ndarray:
        return self.recover(fetch(vectors), self.N)

    def coordinates(self, vectors: np.ndarray) -> Vectors:
        """The frozen vectors, which are rows of their own.

        Raises:
            ValueError: others than those.
        """
        if not np.array_equal(vectors, self.recover.frozen):
            raise ValueError(
                "the kernel form cannot start from given pseudo-Fishers, which need not be combinations of the rows; "
                "pass rows=DenseRows() or rows=SparseRows(), or start from coefficients"
            )
        unit = np.zeros((len(vectors), self.Q.shape[0]), np.float32)
        unit[np.arange(len(vectors)), self.N + np.arange(len(vectors))] = 1.0
        return place(unit, sharded(self.mesh))

    def to_host(self, vectors: Vectors) -> np.ndarray:
        return fetch(vectors)[:, : self.N + len(self.recover.frozen)]

    def from_host(self, saved: np.ndarray) -> Vectors:
        padded = np.pad(saved, ((0, 0), (0, self.Q.shape[0] - saved.shape[1])))
        return place(padded, sharded(self.mesh))
