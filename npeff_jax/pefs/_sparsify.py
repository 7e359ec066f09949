"""Sparsification of the rows of one example: rotation, selection, scaling, and the error of the result."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from npeff_jax.pefs._keep import Selection
from npeff_jax.pefs._rows import HostRows
from npeff_jax.pefs._schema import Normalization, Schema
from npeff_jax.pefs._selection import LeafRows, Selected
from npeff_jax.pefs._step import ExampleEntries
from npeff_jax.pefs.representations import FisherKind, Representation, Rotation

CANCELLED = 1e-5
"""Squared relative error of a sparsified Fisher below which it is computed from the dropped entries: the device's Gram
matrix has a relative error of 1e-7, so smaller differences of two Gram matrices are inaccurate."""

TINY = np.float32(1e-45)
"""Smallest norm stored for a non-zero Fisher; a norm of zero means that the Fisher is zero."""


class NotFiniteError(ValueError):
    """The logits or gradients of an example are not finite."""


class Fidelity(NamedTuple):
    """Accuracy of the sparsified Fisher of one example.

    Attributes:
        kept_trace: trace of the sparsified Fisher, in the unit of the rows.
        kept_norm: Frobenius norm of the sparsified Fisher.
        error: ‖F − F_kept‖ / ‖F‖.
    """

    kept_trace: float
    kept_norm: float
    error: float


def diagonal_fidelity(chosen: Selected, rows: LeafRows, squared_norm: float) -> Fidelity:
    """Compute the fidelity of a sparsified diagonal."""
    kept = chosen.entries[2].astype(np.float64)
    squares = float(kept @ kept)
    missing = squared_norm - squares
    if squared_norm > 0 and missing < CANCELLED * squared_norm:
        missing = float(sum(np.sum(dropped[0] ** 2) for dropped, _ in _dropped(rows, chosen)))
    return Fidelity(float(kept.sum()), squares**0.5, _root(missing, squared_norm))


def fidelity(chosen: Selected, rows: LeafRows, gram: Float[np.ndarray, "c c"]) -> Fidelity:
    """Compute the fidelity of a sparsified factor A, given the Gram matrix A Aᵀ of all its c rows.

    With S the kept entries and D = A − S: ‖F − SᵀS‖² = ‖A Aᵀ‖² − 2 ‖A Sᵀ‖² + ‖S Sᵀ‖², which needs A only where S is not
    zero. If the terms nearly cancel, it is computed as ‖DᵀD + DᵀS + SᵀD‖², which needs all of A.
    """
    A = chosen.columns.astype(np.float64)  # float64, because the error is a small difference
    S = np.zeros(A.shape)
    S[: len(chosen.kept)] = np.where(chosen.kept, A[: len(chosen.kept)], 0.0)
    cross, own = A @ S.T, S @ S.T
    whole = float(np.sum(gram**2))
    missing = whole - 2 * float(np.sum(cross**2)) + float(np.sum(own**2))
    if whole > 0 and missing < CANCELLED * whole:
        DD, DS = np.zeros_like(own), np.zeros_like(own)
        for dropped, kept in _dropped(rows, chosen):
            DD, DS = DD + dropped @ dropped.T, DS + dropped @ kept.T
        missing = _missing(DD, DS, own)
    return Fidelity(float(np.trace(own)), float(np.linalg.norm(own)), _root(missing, whole))


def device_fidelity(one: ExampleEntries, diagonal: bool) -> Fidelity:
    """Compute the fidelity from the products S Sᵀ, D Sᵀ and D Dᵀ of a device, without cancellation."""
    own, DS, DD, gram = (np.asarray(x, np.float64) for x in (one.kept.own, one.kept.cross, one.kept.rest, one.gram))
    if diagonal:
        return Fidelity(float(one.kept.total), float(own[0, 0]) ** 0.5, _root(float(DD[0, 0]), float(gram[0, 0])))
    return Fidelity(
        float(np.trace(own)), float(np.linalg.norm(own)), _root(_missing(DD, DS, own), float(np.sum(gram**2)))
    )


def _missing(DD: Float[np.ndarray, "c c"], DS: Float[np.ndarray, "c c"], own: Float[np.ndarray, "c c"]) -> float:
    """Compute ‖DᵀD + DᵀS + SᵀD‖² from c×c products."""
    return float(np.sum(DD**2) + 4 * np.sum(DD * DS) + 2 * np.sum(DD * own) + 2 * np.sum(DS * DS.T))


def _dropped(rows: LeafRows, chosen: Selected) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield dropped and kept entries of all rows in float64, by ranges of parameters; nothing if all are kept."""
    if chosen.whole:
        return
    for start, piece in rows.pieces():
        dropped = rows.rotated(np.stack(piece)).astype(np.float64)
        kept = np.zeros_like(dropped)
        first, last = np.searchsorted(chosen.support, [start, start + dropped.shape[1]])
        here, mask = chosen.support[first:last] - start, chosen.kept[:, first:last]
        kept[: len(mask), here] = np.where(mask, chosen.columns[: len(mask), first:last], 0.0)
        dropped[kept != 0] = 0.0
        yield dropped, kept


def _root(part: float, whole: float) -> float:
    """Return sqrt(part / whole), NaN if whole is zero, and 0 if rounding made part slightly negative."""
    return (max(part, 0.0) / whole) ** 0.5 if whole > 0 else float("nan")


class Sparsifier:
    """Convert the rows of an example, or the entries that a device selected, to fields of `Pefs`.

    It has no state, so threads may share it.
    """

    def __init__(self, schema: Schema, representation: Representation, keep: Selection) -> None:
        """Prepare for examples as described by ``schema``."""
        self.schema, self.representation, self.keep = schema, representation, keep
        self.normalization = Normalization(schema.normalization)
        self.offsets = np.array([*(p.offset for p in schema.layout.parameters), schema.layout.size])

    def __call__(self, one: HostRows | ExampleEntries, number: int) -> dict[str, Any]:
        """Return the fields of `Pefs` of example ``number``, by name.

        Raises:
            NotFiniteError: its logits or gradients are not finite.
        """
        _check_finite(one, self.schema, number)
        if isinstance(one, ExampleEntries):
            kept, used = one.kept, int(one.kept.n_kept)
            held = device_fidelity(one, self.schema.kind is FisherKind.DIAGONAL)
            entries: Any = (kept.rows[:used], kept.indices[:used], kept.values[:used])
            whole = bool(kept.whole)
            turned = Rotation(None, one.gram.astype(np.float64), one.n_rows)
        else:
            turned = self.representation.rotation(one.gram.astype(np.float64), one.n_rows, np)
            chosen, held = self._kept(one, turned)
            entries, whole = chosen.entries, chosen.whole
        rows, indices, values = entries
        # Rows come from cotangents divided by ``scale``. F is quadratic in rows of a factor, but linear in a diagonal.
        power = 1.0 if self.schema.kind is FisherKind.DIAGONAL else 0.5
        norm, scale = float(np.linalg.norm(turned.gram)) ** (0.5 / power), float(one.scale) ** (2 * power)
        unit = {Normalization.BEFORE: norm**power, Normalization.AFTER: held.kept_norm**power}
        divide = unit.get(self.normalization, 1 / scale)
        trace, size = float(one.trace), norm * float(one.scale) ** 2
        return {
            "values": values / np.float32(divide) if divide else values,
            "indices": indices,
            "rows": rows,
            "n_rows": int(turned.n_rows),
            "norms": max(np.float32(size), TINY) if size else np.float32(0),
            "logits": one.logits,
            "kept_energy": (1.0 if whole else held.kept_trace / trace) if trace else np.nan,
            "fisher_error": held.error,
            "lost_mass": one.lost_mass,
            "lost_trace": one.lost_trace,
        }

    def _kept(self, one: HostRows, turned: Rotation) -> tuple[Selected, Fidelity]:
        """Return the entries to keep of the wanted rows, and their fidelity to all rows."""
        matrix = None if turned.matrix is None else turned.matrix.astype(np.float32)
        rows = LeafRows(one.blocks, self.offsets, matrix, int(turned.n_rows))
        chosen = self.keep.select(rows)
        if self.schema.kind is FisherKind.DIAGONAL:
            return chosen, diagonal_fidelity(chosen, rows, float(turned.gram[0, 0]))
        return chosen, fidelity(chosen, rows, turned.gram)


def blank_arrays(schema: Schema, n_rows: int, n: int | None = None) -> dict[str, np.ndarray]:
    """Return a zero array per field, for ``n`` examples. They take no memory until they are written.

    For dtype "float16" there is also a scale per example; "bfloat16" has the range of float32.
    """
    n, keep = schema.n_examples if n is None else n, schema.keep
    index = np.int32 if schema.layout.size < 2**31 else np.int64
    wide = {"values": np.float32, "indices": index, "rows": np.min_scalar_type(n_rows)}
    narrow = ("norms", "kept_energy", "fisher_error", "lost_mass", "lost_trace")
    arrays: dict[str, np.ndarray] = {name: np.zeros((n, keep), dtype) for name, dtype in wide.items()}
    arrays |= {name: np.zeros(n, np.float32) for name in narrow}
    arrays |= {"n_rows": np.zeros(n, np.int32), "logits": np.zeros((n, schema.n_classes), np.float32)}
    if schema.dtype != "float32":
        arrays["values"] = np.zeros((n, keep), _stored_type(schema.dtype))
        arrays["scales"] = np.ones(n, np.float32)
    return arrays


def put(arrays: dict[str, np.ndarray], i: int, found: dict[str, Any]) -> None:
    """Write the fields of one example to row ``i`` of the arrays."""
    if "scales" in arrays and len(found["values"]):
        # Scale the largest value to 1, so that float16 neither overflows nor loses precision.
        scale = np.abs(found["values"]).max() if arrays["values"].dtype == np.float16 else np.float32(1)
        found = found | {"values": found["values"] / scale, "scales": scale}
    for name, value in found.items():
        if np.ndim(value):
            arrays[name][i, : len(value)] = value
        else:
            arrays[name][i] = value


def skipped(number_of_classes: int) -> dict[str, Any]:
    """Return the fields of a skipped example: no rows, and a norm of NaN."""
    nothing = np.zeros(0, np.float32)
    found = dict.fromkeys(("norms", "kept_energy", "fisher_error", "lost_mass", "lost_trace"), np.float32(np.nan))
    return found | {"values": nothing, "n_rows": 0, "logits": np.full(number_of_classes, np.nan, np.float32)}


def _stored_type(name: str) -> np.dtype:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _check_finite(one: HostRows | ExampleEntries, schema: Schema, number: int) -> None:
    bad = np.flatnonzero(~np.isfinite(one.leaf_norms))
    if not np.isfinite(one.logits).all():
        raise NotFiniteError(f"example {number} has logits that are not finite; look at the model on this example")
    if bad.size:
        name = schema.layout.parameters[int(bad[0])].name
        raise NotFiniteError(
            f"example {number} has a gradient that is not finite, in parameter {name!r} first; look at the model there"
        )
