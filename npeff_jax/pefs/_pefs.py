"""`Pefs`: sparsified per-example Fishers of n examples, in memory or on disk."""

import dataclasses
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from npeff_jax._html import facts_html, histogram_html
from npeff_jax._identity import subset_digest
from npeff_jax._types import RowArray
from npeff_jax.pefs._norms import NormSummary
from npeff_jax.pefs._schema import FisherKind, Schema


@dataclasses.dataclass(frozen=True, eq=False)
class Pefs:
    """Per-example Fishers F_i = Σ a aᵀ over each example's rows (or, diagonal, one row f_i), K non-zeros an example.

    Non-zeros are sorted by row, then by parameter. Where an example has fewer than K, the rest are zeros at parameter 0
    of row 0, which change nothing.

    Attributes:
        schema: what they are of, and how they were made.
        values: (n, K), entries of the normalised rows (of A; raw where the schema says so).
        indices: (n, K), the parameter of each entry, a position in ``schema.layout``.
        rows: (n, K), which of its example's rows each entry belongs to, from 0.
        n_rows: (n,), c_i.
        norms: (n,), Frobenius norm of the Fisher before entries were dropped, of the classes that have a row; for
            diagonal PEFs the L2 norm of f.
        logits: (n, C).
        kept_energy: (n,), the fraction of that Fisher's trace that the kept entries hold.
        fisher_error: (n,), the relative Frobenius error of the sparsified Fisher.
        lost_mass: (n,), probability of the classes that were dropped.
        lost_trace: (n,), estimated fraction of the trace lost with them, or outside a sketch (one random probe).
        labels: (n,) of the data set, if given.
    """

    schema: Schema
    values: RowArray
    indices: RowArray
    rows: RowArray
    n_rows: Int[np.ndarray, "n"]
    norms: Float[np.ndarray, "n"]
    logits: Float[np.ndarray, "n C"]
    kept_energy: Float[np.ndarray, "n"]
    fisher_error: Float[np.ndarray, "n"]
    lost_mass: Float[np.ndarray, "n"]
    lost_trace: Float[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"] | None = None

    @property
    def n_examples(self) -> int:
        """The number of examples, n."""
        return self.values.shape[0]

    def __repr__(self) -> str:
        kind, kept, lost = self.schema.representation["name"], _median(self.kept_energy), _median(self.fisher_error)
        return (
            f"Pefs of {self.n_examples} examples ({kind}), at most {self.values.shape[1]} non-zeros of each; median "
            f"kept energy {kept:.3f}, Frobenius error {lost:.3f}"
        )

    def _repr_html_(self) -> str:
        norms = self.norms[np.isfinite(self.norms)]
        facts: list[tuple[str, Any]] = [
            ("examples", self.n_examples),
            ("parameters explained", self.schema.layout.size),
            ("entries kept an example, at most", self.values.shape[1]),
            ("rows an example, on average", self.total_rows / max(self.n_examples, 1)),
            ("kept energy, median", _median(self.kept_energy)),
            ("Frobenius error, median", _median(self.fisher_error)),
            ("norms, smallest to largest", f"{norms.min(initial=np.inf):.2g} to {norms.max(initial=0):.2g}"),
        ]
        if self.labels is not None:
            facts.append(("predicted as labelled", f"{np.mean(np.argmax(self.logits, 1) == self.labels):.1%}"))
        if len(self.failed):
            facts.append(("skipped, gradients not finite", len(self.failed)))
        parts = (histogram_html(self.kept_energy, "kept energy"), histogram_html(self.fisher_error, "Frobenius error"))
        return facts_html(f"PEFs ({self.schema.representation['name']})", facts, *parts)

    @property
    def total_rows(self) -> int:
        """N, the rows of all examples together."""
        return int(self.n_rows.sum())

    @property
    def failed(self) -> Int[np.ndarray, "failed"]:
        """Examples that were skipped because their gradients were not finite."""
        return np.flatnonzero(~np.isfinite(self.norms))

    @property
    def norm_summary(self) -> NormSummary:
        """Median and largest norm, and the examples that stand out."""
        return NormSummary.of(self.norms)

    def __len__(self) -> int:
        return self.n_examples

    def subset(self, examples: Any) -> "Pefs":
        """Return the PEFs of some examples, in memory.

        Args:
            examples: a slice, positions (from the end if negative) or a Boolean mask.

        Raises:
            IndexError: a position or a mask that these PEFs do not have.
        """
        examples = _positions(examples, self.n_examples)
        arrays: dict[str, Any] = {
            f.name: None if getattr(self, f.name) is None else np.asarray(getattr(self, f.name)[examples])
            for f in dataclasses.fields(self)
            if f.name != "schema"
        }
        whole = np.array_equal(examples, np.arange(self.n_examples))
        digest = self.schema.examples if whole else subset_digest(self.schema.examples, examples)
        return Pefs(dataclasses.replace(self.schema, n_examples=len(examples), examples=digest), **arrays)

    def fisher_vector_product(self, vector: Float[np.ndarray, "m"]) -> Float[np.ndarray, "n m"]:
        """F_i v of every example, from what was kept, in the unit of the stored rows."""
        A = self.to_scipy().astype(np.float64)
        if self.schema.kind is FisherKind.DIAGONAL:
            return A.multiply(vector[None]).toarray()
        example = np.repeat(np.arange(self.n_examples), self.n_rows)
        owner = scipy.sparse.csr_array((A @ vector, (example, np.arange(A.shape[0]))), (self.n_examples, A.shape[0]))
        return (owner @ A).toarray()

    def to_scipy(self, examples: slice = slice(None)) -> scipy.sparse.csr_array:
        """A: all rows stacked, (N, m), example by example; or those of a range of examples. A copy in memory."""
        values, indices, rows = self.values[examples], self.indices[examples], self.rows[examples]
        first = np.concatenate([[0], np.cumsum(self.n_rows[examples])])
        stored = values != 0
        row = (rows + first[:-1, None])[stored]
        counts = np.bincount(row, minlength=int(first[-1]))
        indptr = np.concatenate([[0], np.cumsum(counts)])
        shape = (int(first[-1]), self.schema.layout.size)
        return scipy.sparse.csr_array((values[stored].astype(np.float32), indices[stored], indptr), shape=shape)


def _positions(examples: Any, n: int) -> Int[np.ndarray, "k"]:
    """Non-negative positions that a slice, an index or a mask stands for."""
    if not isinstance(examples, slice):
        examples = np.atleast_1d(np.asarray(examples))
        if examples.size == 0 and examples.dtype != bool:
            examples = examples.astype(int)
        whole = np.issubdtype(examples.dtype, np.integer)
        if examples.ndim != 1 or not (whole or (examples.dtype == bool and examples.shape == (n,))):
            raise IndexError(
                f"examples of dtype {examples.dtype} and shape {examples.shape} are no positions, and no mask of {n}; "
                "pass a slice, integers or a Boolean mask with an entry per example"
            )
        if whole and examples.size and not (-n <= examples.min() and examples.max() < n):
            raise IndexError(f"examples has positions from {examples.min()} to {examples.max()}; these PEFs have {n}")
    return np.arange(n)[examples]


def _median(values: Float[np.ndarray, "n"]) -> float:
    """The median of what is not NaN; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else float("nan")
