"""Conversion of a user's arrays to entries of PEFs, with checks, sorting and norms."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from npeff_jax._checks import check_integer
from npeff_jax._parameters import Parameter, ParameterLayout
from npeff_jax.models import Model
from npeff_jax.pefs.representations import FisherKind

ARRAYS = "subset:arrays:"
"""Prefix of the digest of PEFs from arrays. It is of the arrays, so cannot be compared with examples."""


class Entries(NamedTuple):
    """Non-zeros of n examples, sorted by row, then by parameter, and padded with zeros."""

    values: Float[np.ndarray, "n K"]
    indices: Int[np.ndarray, "n K"]
    rows: Int[np.ndarray, "n K"]
    n_rows: Int[np.ndarray, "n"]


def layout_of(parameters: Any) -> tuple[ParameterLayout | None, Model | None]:
    """Return the layout of the parameters, and the model, if known."""
    if parameters is None or isinstance(parameters, ParameterLayout):
        return parameters, None
    if isinstance(parameters, Model):
        return parameters.space.layout, parameters
    return ParameterLayout((Parameter("parameters", (check_integer("parameters", parameters),), 0),)), None


def dense_entries(values: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Convert dense rows to values, indices, rows and the number of parameters."""
    dense = np.asarray(values)
    dense = dense[:, None] if dense.ndim == 2 else dense
    if dense.ndim != 3 or 0 in dense.shape:
        raise ValueError(
            f"values has shape {np.shape(values)}; expected (n, c, m) dense rows or (n, m), or pass indices"
        )
    n, c, m = dense.shape
    kept = dense.reshape(n, c * m) != 0
    width = max(int(kept.sum(axis=1).max()), 1)
    order = np.argsort(~kept, axis=1, kind="stable")[:, :width]
    taken = np.take_along_axis(dense.reshape(n, c * m), order, axis=1)
    return taken, np.where(taken != 0, order % m, 0), np.where(taken != 0, order // m, 0), m


def checked_entries(values: Any, indices: Any, rows: Any, m: int, kind: FisherKind) -> Entries:
    """Check entries given by a user, and return them sorted."""
    values, indices = np.asarray(values), np.asarray(indices)
    rows = np.zeros(indices.shape, np.int32) if rows is None else np.asarray(rows)
    if values.ndim != 2 or values.shape != indices.shape or values.shape != rows.shape or 0 in values.shape:
        shapes = f"values {values.shape}, indices {indices.shape}, rows {rows.shape}"
        raise ValueError(f"the shapes are {shapes}; expected (n, K) of all three")
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise ValueError(f"values has dtype {values.dtype}; expected real numbers")
    values = values.astype(np.float64)
    for what, array, size in (("indices", indices, m), ("rows", rows, 2**31)):
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{what} has dtype {array.dtype}; expected integers")
        if array.min() < 0 or array.max() >= size:
            raise ValueError(f"{what} has entries from {array.min()} to {array.max()}; expected 0 to {size - 1}")
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise ValueError(f"values of example {bad} are not finite; clean or drop it")
    if kind is FisherKind.DIAGONAL and (values.min() < 0 or rows.max() > 0):
        raise ValueError("a diagonal is one row per example, not negative; pass squares, or kind=FisherKind.LOW_RANK")
    used = values != 0
    rows = np.where(used, rows.astype(np.int64), 2**31)  # sorts last; narrow dtypes cannot hold it
    indices = np.where(used, indices, 0).astype(np.int64)
    order = np.lexsort((indices, rows), axis=1)
    values, indices, rows, used = (np.take_along_axis(a, order, axis=1) for a in (values, indices, rows, used))
    twice = (np.diff(rows, axis=1) == 0) & (np.diff(indices, axis=1) == 0) & used[:, 1:]
    if twice.any():
        i, k = (int(place[0]) for place in np.nonzero(twice))
        raise ValueError(f"example {i} has parameter {indices[i, k]} twice in row {rows[i, k]}; add the values up")
    rows = np.where(used, rows, 0).astype(np.int32)
    n_rows = np.where(used.any(axis=1), rows.max(axis=1) + 1, 0).astype(np.int32)
    return Entries(values, indices, rows, n_rows)


def norms_of(found: Entries, kind: FisherKind) -> Float[np.ndarray, "n"]:
    """Compute the Frobenius norm of each Fisher, or the L2 norm of each diagonal."""
    if kind is FisherKind.DIAGONAL:
        return np.linalg.norm(found.values, axis=1)
    norms = np.zeros(len(found.values))
    for i, (values, indices, rows, c) in enumerate(zip(*found)):
        columns = np.unique(indices, return_inverse=True)[1]
        A = np.zeros((max(int(c), 1), columns.max() + 1))
        np.add.at(A, (rows, columns), values)
        norms[i] = np.linalg.norm(A @ A.T)
    return norms
