"""From the rows that gradients gave to the rows that are kept: orthogonal and the largest first, or as they are."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from npeff_jax.pefs._representation import LowRank, Representation, RowBasis
from npeff_jax.pefs._rows import ExampleRows, HostRows


class Rotation(NamedTuple):
    """What a small Gram matrix says about an example's rows.

    Attributes:
        matrix: (c, c) to multiply the rows with, the wanted ones first; None to leave them as they are.
        gram: (c, c), of the rows then.
        n_rows: how many of them are wanted.
    """

    matrix: Any
    gram: Any
    n_rows: Any


def rotation_of(one: ExampleRows | HostRows, representation: Representation, xp: Any) -> Rotation:
    """The rotation that ``representation`` asks for: orthogonal to rounding whatever the condition of the Gram matrix,
    so that F is kept exactly.

    Args:
        one: the rows.
        representation: says whether to rotate, and how many of the rotated rows to use.
        xp: ``jax.numpy``, or ``numpy`` for rows on the host. The driver rotates on the host: XLA's batched
            eigensolver for CPUs waits for threads of the pool that it occupies, and with several devices deadlocks.
    """
    if not (isinstance(representation, LowRank) and representation.rows is RowBasis.PRINCIPAL):
        return Rotation(None, one.gram, one.n_rows)
    unit = xp.trace(one.gram)
    _, vectors = xp.linalg.eigh(one.gram / xp.where(unit > 0, unit, 1.0))
    matrix = vectors[:, ::-1].T
    largest = xp.take_along_axis(matrix, xp.argmax(xp.abs(matrix), axis=1)[:, None], axis=1)
    matrix = matrix * xp.where(largest < 0, -1.0, 1.0)  # a sign that no detail of the eigensolver decides
    gram = matrix @ one.gram @ matrix.T
    return Rotation(matrix, gram, _wanted(representation, gram, one.n_rows, xp))


def rotated(one: ExampleRows, representation: Representation) -> ExampleRows:
    """The rows as the representation wants them, on the device."""
    found = rotation_of(one, representation, jnp)
    if found.matrix is None:
        return one
    leaves = tuple(jnp.tensordot(found.matrix, leaf, 1) for leaf in one.leaves)
    return one._replace(blocks=(leaves,), gram=found.gram, n_rows=found.n_rows)


def _wanted(representation: LowRank, gram: Any, n_rows: Any, xp: Any) -> Any:
    """How many principal rows are wanted: by count, and by the share of the trace that they hold."""
    if representation.max_rows is not None:
        n_rows = xp.minimum(n_rows, representation.max_rows)
    if representation.min_trace is not None:
        held = xp.cumsum(xp.diagonal(gram))
        n_rows = xp.minimum(n_rows, 1 + xp.sum(held < representation.min_trace * held[-1]))
    return n_rows
