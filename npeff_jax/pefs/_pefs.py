"""`Pefs`: sparsified per-example Fishers of n examples, in memory or on disk."""

import dataclasses
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from npeff_jax._checks import as_enum, check_labels, listing, positions
from npeff_jax._html import facts_html, histogram_html
from npeff_jax._identity import describe, subset_digest, tree_digest
from npeff_jax._parameters import Parameter, ParameterLayout
from npeff_jax._types import RowArray
from npeff_jax.models import Model
from npeff_jax.pefs._arrays import ARRAYS, checked_entries, dense_entries, layout_of, norms_of
from npeff_jax.pefs._schema import SOFTMAX, Normalization, Schema
from npeff_jax.pefs.representations import FisherKind

SPREADS = 5.0
"""Number of robust standard deviations of log norms above the median from which a norm is an outlier. Norms of Fishers
spread over orders of magnitude; of a normal distribution, one in three million is beyond this threshold."""

TO_DEVIATION = 1.4826
"""Ratio of the standard deviation of a normal distribution to its median absolute deviation."""


@dataclasses.dataclass(frozen=True, eq=False)
class NormSummary:
    """Summary of the Frobenius norms of the Fishers, over examples that did not fail.

    Attributes:
        median: median norm.
        largest: largest norm.
        threshold: norm above which an example is an outlier.
        outliers: examples above the threshold, largest first.
        failed: examples that were skipped.
        uninformative: examples whose Fisher is exactly zero in float32.
    """

    median: float
    largest: float
    threshold: float
    outliers: Int[np.ndarray, "outliers"]
    failed: Int[np.ndarray, "failed"]
    uninformative: Int[np.ndarray, "zero"]

    @classmethod
    def of(cls, norms: Float[np.ndarray, "n"]) -> "NormSummary":
        """Summarise the norms of all examples (NaN for failed ones)."""
        failed = np.flatnonzero(~np.isfinite(norms))
        some = norms[norms > 0]  # zero has no logarithm
        logs = np.log(some.astype(np.float64)) if some.size else np.zeros(1)
        spread = TO_DEVIATION * float(np.median(np.abs(logs - np.median(logs))))
        threshold = float(np.exp(np.median(logs) + SPREADS * max(spread, float(np.finfo(np.float32).eps))))
        order = np.argsort(-norms, kind="stable")
        usable = np.isfinite(norms)
        return cls(
            median=float(np.median(norms[usable])) if usable.any() else float("nan"),
            largest=float(np.max(norms[usable])) if usable.any() else float("nan"),
            threshold=threshold,
            outliers=order[norms[order].astype(np.float64) > threshold],  # may exceed float32
            failed=failed,
            uninformative=np.flatnonzero(norms == 0),
        )

    def to_json(self) -> dict[str, Any]:
        return {f.name: np.asarray(getattr(self, f.name)).tolist() for f in dataclasses.fields(self)}

    def __str__(self) -> str:
        sentence = f"norms of the Fishers: median {self.median:.3g}, largest {self.largest:.3g}"
        if self.outliers.size:
            names = listing([str(i) for i in self.outliers])
            sentence += f"; {self.outliers.size} outliers above {self.threshold:.3g}: examples {names}"
        if self.failed.size:
            sentence += f"; {self.failed.size} failed: examples {listing([str(i) for i in self.failed])}"
        if self.uninformative.size:
            names = listing([str(i) for i in self.uninformative])
            sentence += f"; {self.uninformative.size} without information (a Fisher of exactly zero): examples {names}"
        return sentence


@dataclasses.dataclass(frozen=True, eq=False)
class Pefs:
    """Per-example Fishers F_i = Σ a aᵀ over the rows of example i (or one row f_i if diagonal), with K non-zeros each.

    Non-zeros are sorted by row, then by parameter. An example with fewer than K is padded with zeros at parameter 0 of
    row 0, which have no effect.

    Attributes:
        schema: model, examples and settings of the PEFs.
        values: (n, K), entries of the normalised rows (of A), or of raw rows if the schema says so.
        indices: (n, K), parameter of each entry, a position in ``schema.layout``.
        rows: (n, K), row of each entry within its example, from 0.
        n_rows: (n,), c_i.
        norms: (n,), Frobenius norm of the Fisher of the classes that have a row, before entries were dropped; for
            diagonal PEFs the L2 norm of f.
        logits: (n, C), logits of the examples.
        kept_energy: (n,), fraction of the trace of this Fisher that the kept entries hold; NaN if the example failed or
            its Fisher is zero.
        fisher_error: (n,), relative Frobenius error of the sparsified Fisher; NaN like ``kept_energy``. With
            ``LowRank(sketch=...)`` it is relative to the Fisher inside the sketch, and ``lost_trace`` is the part
            outside.
        lost_mass: (n,), probability of the dropped classes.
        lost_trace: (n,), fraction of the trace of dropped classes, or outside a sketch, estimated by a random probe.
        labels: (n,), labels of the data set, if given.
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
        """Number of examples, n."""
        return self.values.shape[0]

    def __repr__(self) -> str:
        kind, kept, lost = self.schema.representation["name"], _median(self.kept_energy), _median(self.fisher_error)
        remarks = f", {len(self.failed)} failed" if len(self.failed) else ""
        remarks += f", {len(self.uninformative)} without information" if len(self.uninformative) else ""
        return (
            f"Pefs of {self.n_examples} examples ({kind}){remarks}, at most {self.values.shape[1]} non-zeros of each; "
            f"median kept energy {kept:.3f}, Frobenius error {lost:.3f}"
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
        if len(self.uninformative):
            facts.append(("without information, Fisher of zero", len(self.uninformative)))
        parts = (histogram_html(self.kept_energy, "kept energy"), histogram_html(self.fisher_error, "Frobenius error"))
        return facts_html(f"PEFs ({self.schema.representation['name']})", facts, *parts)

    @property
    def total_rows(self) -> int:
        """Number of rows over all examples, N."""
        return int(self.n_rows.sum())

    @property
    def failed(self) -> Int[np.ndarray, "failed"]:
        """Positions of examples that were skipped because of non-finite gradients."""
        return np.flatnonzero(~np.isfinite(self.norms))

    @property
    def uninformative(self) -> Int[np.ndarray, "zero"]:
        """Positions of examples whose Fisher is exactly zero: a logit margin above 88, or vanishing gradients."""
        return np.flatnonzero(self.norms == 0)

    @property
    def usable(self) -> Bool[np.ndarray, "n"]:
        """(n,), whether each example did not fail; use it as a mask for statistics."""
        return np.isfinite(self.norms)

    @property
    def norm_summary(self) -> NormSummary:
        """Median and largest norm, and outliers."""
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
        examples = positions("examples", examples, self.n_examples)
        arrays: dict[str, Any] = {
            f.name: None if getattr(self, f.name) is None else np.asarray(getattr(self, f.name)[examples])
            for f in dataclasses.fields(self)
            if f.name != "schema"
        }
        whole = np.array_equal(examples, np.arange(self.n_examples))
        digest = self.schema.examples if whole else subset_digest(self.schema.examples, examples)
        return Pefs(dataclasses.replace(self.schema, n_examples=len(examples), examples=digest), **arrays)

    @classmethod
    def from_arrays(
        cls,
        values: Any,
        indices: Any = None,
        rows: Any = None,
        *,
        parameters: Model | ParameterLayout | int | None = None,
        kind: FisherKind = FisherKind.LOW_RANK,
        normalization: Normalization = Normalization.BEFORE,
        logits: Any = None,
        labels: Any = None,
        name: str = "Arrays",
    ) -> "Pefs":
        """Make PEFs from arrays of your own.

        Args:
            values: dense rows (n, c, m), or (n, m) if each example has one row or a diagonal; or, with ``indices``,
                (n, K) non-zeros, among which zeros are ignored.
            indices: (n, K), parameter of each value.
            rows: (n, K), row of each value within its example, from 0; by default one row per example.
            parameters: the `Model`, its layout, or the number m of parameters; required with ``indices``.
            kind: low-rank or diagonal; diagonals must be non-negative.
            normalization: ``BEFORE`` divides each example's rows by the square root of its Fisher's Frobenius norm (a
                diagonal by its L2 norm); ``NONE`` keeps them. The norms are recorded in either case.
            logits: (n, C), logits of the examples; zeros if not given.
            labels: (n,), labels of the data set.
            name: name of the representation.

        Raises:
            ValueError: inconsistent shapes, positions out of range or repeated, or non-finite values.
        """
        layout, model = layout_of(parameters)
        kind, normalization = as_enum("kind", kind, FisherKind), as_enum("normalization", normalization, Normalization)
        if normalization is Normalization.AFTER:
            raise ValueError(
                "normalization=AFTER has no meaning for rows that were not sparsified; pass BEFORE or NONE"
            )
        if indices is None:
            values, indices, rows, m = dense_entries(values)
        elif layout is None:
            raise ValueError(
                "parameters is missing: with indices, pass the model, its layout or the number of parameters"
            )
        else:
            m = layout.size
        if layout is None:
            layout = ParameterLayout((Parameter("parameters", (m,), 0),))
        found = checked_entries(values, indices, rows, layout.size, kind)
        n, c = len(found.values), int(found.n_rows.max(initial=1))
        logits = np.zeros((n, c + 1), np.float32) if logits is None else np.asarray(logits, np.float32)
        if logits.ndim != 2 or len(logits) != n:
            raise ValueError(f"logits has shape {logits.shape}; expected ({n}, C), a row per example")
        norms = norms_of(found, kind)
        divide = np.where(norms > 0, norms, 1.0) ** (1.0 if kind is FisherKind.DIAGONAL else 0.5)
        scaled = found.values / divide[:, None] if normalization is Normalization.BEFORE else found.values
        schema = Schema(
            kind=kind,
            representation={"name": name},
            normalization=normalization.value,
            model="" if model is None else model.fingerprint,
            examples=ARRAYS + tree_digest([found.values, found.indices, found.rows]),
            layout=layout,
            n_examples=n,
            n_classes=logits.shape[1],
            keep=found.values.shape[1],
            constants=None if model is None else model.constants_digest,
            output=dict(SOFTMAX) if model is None else describe(model.output),
        )
        narrow = {field: np.zeros(n, np.float32) for field in ("fisher_error", "lost_mass", "lost_trace")}
        return cls(
            schema,
            values=scaled.astype(np.float32),
            indices=found.indices,
            rows=found.rows,
            n_rows=found.n_rows,
            norms=norms.astype(np.float32),
            logits=logits,
            kept_energy=np.where(norms > 0, 1.0, np.nan).astype(np.float32),
            labels=check_labels(labels, n),
            **narrow,
        )

    def fisher_vector_product(self, vector: Float[np.ndarray, "m"]) -> Float[np.ndarray, "n m"]:
        """Compute F_i v for every example from the kept entries, in the unit of the stored rows."""
        A = self.to_scipy().astype(np.float64)
        if self.schema.kind is FisherKind.DIAGONAL:
            return A.multiply(vector[None]).toarray()
        example = np.repeat(np.arange(self.n_examples), self.n_rows)
        owner = scipy.sparse.csr_array((A @ vector, (example, np.arange(A.shape[0]))), (self.n_examples, A.shape[0]))
        return (owner @ A).toarray()

    def to_scipy(self, examples: slice = slice(None)) -> scipy.sparse.csr_array:
        """Return A (N, m), all rows stacked example by example, or those of some examples, as a copy in memory."""
        values, indices, rows = self.values[examples], self.indices[examples], self.rows[examples]
        first = np.concatenate([[0], np.cumsum(self.n_rows[examples])])
        stored = values != 0
        row = (rows + first[:-1, None])[stored]
        counts = np.bincount(row, minlength=int(first[-1]))
        indptr = np.concatenate([[0], np.cumsum(counts)])
        shape = (int(first[-1]), self.schema.layout.size)
        # One index dtype, int32 if sufficient: otherwise SciPy widens both, and products read twice as much memory.
        index = np.int32 if max(indptr[-1], shape[1]) < 2**31 else np.int64
        entries = values[stored].astype(np.float32), indices[stored].astype(index), indptr.astype(index)
        return scipy.sparse.csr_array(entries, shape=shape)


def _median(values: Float[np.ndarray, "n"]) -> float:
    """Return the median, ignoring NaN; NaN if there are no values."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else float("nan")
