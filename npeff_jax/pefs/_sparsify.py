"""One example's dense rows to what is kept of them: rotated, selected, scaled, and weighed against the whole."""

from typing import Any

import numpy as np

from npeff_jax.models import Model
from npeff_jax.pefs._fidelity import Fidelity, diagonal_fidelity, fidelity
from npeff_jax.pefs._representation import Diagonal, Keep, Normalization, PerRow, Representation, SharedSupport
from npeff_jax.pefs._rotation import Rotation, rotation_of
from npeff_jax.pefs._rows import HostRows
from npeff_jax.pefs._schema import FisherKind, Schema
from npeff_jax.pefs._selection import LeafRows, Selected, largest, shared_support


class NotFiniteError(ValueError):
    """An example whose logits or gradients have NaN or infinity in them."""


class Sparsifier:
    """Dense rows of one example after the other to the fields of `Pefs`. Holds no state: threads may share it."""

    def __init__(self, schema: Schema, representation: Representation, keep: Keep) -> None:
        """For examples as ``schema`` describes them."""
        self.schema, self.representation, self.keep = schema, representation, keep
        self.normalization = Normalization(schema.normalization)
        self.offsets = np.array([*(p.offset for p in schema.layout.parameters), schema.layout.size])

    def __call__(self, one: HostRows, number: int) -> dict[str, Any]:
        """Values by field of `Pefs` for example ``number``.

        Raises:
            NotFiniteError: something in it is not finite.
        """
        _check_finite(one, self.schema, number)
        turned = rotation_of(one._replace(gram=one.gram.astype(np.float64)), self.representation, np)
        chosen, held = self._kept(one, turned)
        rows, indices, values = chosen.entries
        # Rows come from cotangents divided by ``scale``. F is quadratic in a row of a factor, linear in a diagonal.
        power = 1.0 if self.schema.kind is FisherKind.DIAGONAL else 0.5
        norm, scale = float(np.linalg.norm(turned.gram)) ** (0.5 / power), float(one.scale) ** (2 * power)
        unit = {Normalization.BEFORE: norm**power, Normalization.AFTER: held.kept_norm**power}
        divide = unit.get(self.normalization, 1 / scale)
        trace = float(one.trace)
        return {
            "values": values / np.float32(divide) if divide else values,
            "indices": indices,
            "rows": rows,
            "n_rows": int(turned.n_rows),
            "norms": norm * float(one.scale) ** 2,
            "logits": one.logits,
            "kept_energy": held.kept_trace / trace if trace else 1.0,
            "fisher_error": held.error,
            "lost_mass": one.lost_mass,
            "lost_trace": one.lost_trace,
        }

    def _kept(self, one: HostRows, turned: Rotation) -> tuple[Selected, Fidelity]:
        """The entries to keep of the wanted rows, and what they hold of all rows."""
        n_rows = int(turned.n_rows)
        matrix = None if turned.matrix is None else turned.matrix.astype(np.float32)
        rows = LeafRows(one.blocks, self.offsets, matrix, n_rows)
        if isinstance(self.keep, SharedSupport):
            chosen = shared_support(rows, self.keep.parameters)
        else:
            chosen = largest(rows, self.keep.entries * n_rows if isinstance(self.keep, PerRow) else self.schema.keep)
        if self.schema.kind is FisherKind.DIAGONAL:
            return chosen, diagonal_fidelity(chosen.entries[2], float(turned.gram[0, 0]))
        return chosen, fidelity(chosen, turned.gram)


def blank_arrays(schema: Schema, n_rows: int, n: int | None = None) -> dict[str, np.ndarray]:
    """One zero array a field, for ``n`` examples. Zeros take no memory until they are written.

    Values in half precision: "float16" has a scale an example beside them, "bfloat16" has the range of float32.
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
    """What was found of one example into row ``i`` of the arrays."""
    if "scales" in arrays and len(found["values"]):
        # The largest becomes 1, so that float16 neither overflows nor wastes its range.
        scale = np.abs(found["values"]).max() if arrays["values"].dtype == np.float16 else np.float32(1)
        found = found | {"values": found["values"] / scale, "scales": scale}
    for name, value in found.items():
        if np.ndim(value):
            arrays[name][i, : len(value)] = value
        else:
            arrays[name][i] = value


def skipped(number_of_classes: int) -> dict[str, Any]:
    """What stands for an example that failed: no rows, and a norm that says so."""
    nothing = np.zeros(0, np.float32)
    found = dict.fromkeys(("norms", "kept_energy", "fisher_error", "lost_mass", "lost_trace"), np.float32(np.nan))
    return found | {"values": nothing, "n_rows": 0, "logits": np.full(number_of_classes, np.nan, np.float32)}


def width(keep: Keep, model: Model, representation: Representation, n_rows: int) -> int:
    """The most non-zeros an example can keep: columns of the stored arrays.

    Raises:
        ValueError: more than there are, or none.
    """
    n_rows = 1 if isinstance(representation, Diagonal) else n_rows
    m = model.space.size
    if keep is None:
        return n_rows * m
    if isinstance(keep, int):
        if not 0 < keep <= n_rows * m:
            raise ValueError(
                f"keep={keep} is out of range: an example has {n_rows * m} entries; pass 1 to {n_rows * m}, or None"
            )
        return keep
    each = keep.entries if isinstance(keep, PerRow) else keep.parameters
    if not 0 < each <= m:
        raise ValueError(f"keep={keep} is out of range: a row has {m} entries; pass 1 to {m}")
    return each * n_rows


def _stored_type(name: str) -> np.dtype:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _check_finite(one: HostRows, schema: Schema, number: int) -> None:
    bad = np.flatnonzero(~np.isfinite(one.leaf_norms))
    if not np.isfinite(one.logits).all():
        raise NotFiniteError(f"example {number} has logits that are not finite; look at the model on this example")
    if bad.size:
        name = schema.layout.parameters[int(bad[0])].name
        raise NotFiniteError(
            f"example {number} has a gradient that is not finite, in parameter {name!r} first; look at the model there"
        )
