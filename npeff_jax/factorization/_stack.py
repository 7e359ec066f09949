"""PEFs to the rows A that are decomposed: stacked, pruned to the parameters that enough examples touch."""

import dataclasses

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from npeff_jax.factorization._objective import squared_norms
from npeff_jax.pefs import Kind, Pefs


@dataclasses.dataclass(frozen=True, eq=False)
class Stack:
    """The rows of all examples over the parameters that are kept.

    Attributes:
        A: (N, m'). Rows without an entry are left out: they add nothing to any product.
        owner: (N,), the example of each row, ascending.
        n_examples: n.
        parameter_indices: (m',), ascending.
        example_norms: (n,), ‖F_i‖² before pruning. Losses count what was pruned as not explained.
        lost_energy: fraction of the trace that pruning dropped.
    """

    A: scipy.sparse.csr_array
    owner: Int[np.ndarray, "N"]
    n_examples: int
    parameter_indices: Int[np.ndarray, "m_kept"]
    example_norms: Float[np.ndarray, "n"]
    lost_energy: float

    @property
    def squared_norm(self) -> float:
        """‖F‖², summed over examples."""
        return float(self.example_norms.sum())


def stack(pefs: Pefs, *, min_count: int = 1, parameter_indices: np.ndarray | None = None) -> Stack:
    """Stack the rows of ``pefs``.

    Args:
        pefs: of either kind.
        min_count: parameters with fewer non-zeros over all rows are pruned.
        parameter_indices: keep exactly these parameters instead.

    Raises:
        ValueError: no examples, a value that is not finite, or nothing left.
    """
    if pefs.n_examples == 0:
        raise ValueError("there are no examples in these PEFs; the selection that made them is empty")
    full = pefs.to_scipy()
    n_rows = np.asarray(pefs.n_rows)
    owner = np.repeat(np.arange(pefs.n_examples), n_rows)
    if not np.isfinite(full.data).all():
        row = np.searchsorted(full.indptr, np.flatnonzero(~np.isfinite(full.data))[0], side="right") - 1
        raise ValueError(f"the PEF of example {owner[row]} has a value that is not finite; recompute or leave it out")
    if pefs.schema.kind is Kind.DIAGONAL:
        norms = np.asarray(full.multiply(full).sum(axis=1, dtype=np.float64)).reshape(-1)
        energy = full.data.astype(np.float64)
    else:
        norms = squared_norms(full, n_rows)
        energy = full.data.astype(np.float64) ** 2
    if parameter_indices is None:
        counts = np.bincount(full.indices, minlength=full.shape[1])
        parameter_indices = np.flatnonzero(counts >= max(min_count, 1))
        if parameter_indices.size == 0:
            raise ValueError(f"min_count={min_count} leaves no parameter; the most frequent one has {counts.max()}")
    position = np.full(full.shape[1], -1, np.int64)
    position[parameter_indices] = np.arange(len(parameter_indices))
    kept = position[full.indices] >= 0
    row = np.repeat(np.arange(full.shape[0]), np.diff(full.indptr))[kept]
    filled, row = np.unique(row, return_inverse=True)
    A = scipy.sparse.csr_array(
        (full.data[kept], (row, position[full.indices[kept]])), shape=(len(filled), len(parameter_indices))
    )
    A.sort_indices()
    total = energy.sum()
    lost = float(energy[~kept].sum() / total) if total > 0 else 0.0
    return Stack(A, owner[filled], pefs.n_examples, np.asarray(parameter_indices, np.int64), norms, lost)
