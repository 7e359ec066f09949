"""The glossary as array aliases: one letter, one meaning, in code, docstrings and tests alike.

===== =====================================================================================
n     examples
C     classes: the size of a model's output
c_i   rows kept for example i
N     all rows together, the sum of the c_i
m     parameters explained, after the user's mask
m'    parameters left after pruning
K     non-zeros kept for one example
r     components
===== =====================================================================================
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int

PyTree = Any
"""A nest of containers with arrays as leaves."""

Example = Any
"""One example, a pytree without a batch axis."""

Examples = Any
"""Examples: a pytree whose leaves share a leading axis, or a sized source that can be sliced into one."""

LogitsFn = Callable[[PyTree, Example], jax.Array]
"""``(params, example) -> (C,)``, a pure function of one example."""

Logits = Float[Array, "C"]
Cotangents = Float[Array, "c C"]
"""Vectors on the logits, pulled back to the rows of a PEF by the transposed Jacobian."""

Coefficients = Float[Array, "n r"]
"""W: how much each component contributes to each example's PEF, non-negative."""

RowProducts = Float[Array, "N r"]
"""A Gᵀ: every stored row times every pseudo-Fisher vector."""

ComponentGram = Float[Array, "r r"]
"""G Gᵀ, or anything else over pairs of components."""

Labels = Int[np.ndarray, "n"]

Components = Sequence[int] | Int[np.ndarray, "k"]
"""Which components, by index."""


@runtime_checkable
class RowArray(Protocol):
    """An array of results on the host: NumPy, or an array larger than memory that is read by row.

    Indexing with an integer, a slice or an integer array along the first axis gives NumPy.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __getitem__(self, rows: Any, /) -> np.ndarray: ...
    def __len__(self) -> int: ...
