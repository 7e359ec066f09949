"""Row spaces: what holds the rows A, and answers the solvers' three questions about them."""

from npeff_jax.factorization.rows._dense import DenseRows as DenseRows
from npeff_jax.factorization.rows._protocol import RowSpace as RowSpace
from npeff_jax.factorization.rows._protocol import Vectors as Vectors
