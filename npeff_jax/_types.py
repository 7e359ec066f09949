"""The glossary as array aliases. Letters have the same meaning in code, docstrings and tests.

===== =====================================================================================
n     examples
C     classes: the size of a model's output
c_i   rows kept for example i
N     all rows together, the sum of the c_i
m     explained parameters, after the user's mask
m'    parameters left after pruning
K     non-zeros kept per example
r     components
===== =====================================================================================
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int

PyTree = Any
"""Nested containers with arrays as leaves."""

Example = Any
"""One example, a pytree without a batch axis."""

Examples = Any
"""Examples: a pytree whose leaves share a leading axis, or a sized source that can be sliced into one."""

LogitsFn = Callable[[PyTree, Example], jax.Array]
"""``(params, example) -> (C,)``, a pure function of one example."""

Logits = Float[Array, "C"]
Cotangents = Float[Array, "c C"]
"""Cotangents on the logits; the transposed Jacobian pulls them back to rows of a PEF."""

Coefficients = Float[Array, "n r"]
"""W, non-negative contributions of each component to each example's PEF."""

RowProducts = Float[Array, "N r"]
"""A Gᵀ, inner products of rows and pseudo-Fisher vectors."""

ComponentGram = Float[Array, "r r"]
"""G Gᵀ, or another matrix over pairs of components."""

Labels = Int[np.ndarray, "n"]

Components = Sequence[int] | Int[np.ndarray, "k"]
"""Indices of components."""


@runtime_checkable
class RowArray(Protocol):
    """Protocol of arrays of results on the host: NumPy arrays, or arrays larger than memory that are read by row.

    Indexing along the first axis with an integer, a slice or an integer array returns a NumPy array.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __getitem__(self, rows: Any, /) -> np.ndarray: ...
    def __len__(self) -> int: ...
