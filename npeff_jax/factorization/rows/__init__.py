"""Row spaces: what holds the rows A, and answers the solvers' three questions about them."""

from npeff_jax.factorization.rows._blocks import BlockedRows as BlockedRows
from npeff_jax.factorization.rows._dense import DenseSpace as DenseSpace
from npeff_jax.factorization.rows._kernel import KernelSpace as KernelSpace
from npeff_jax.factorization.rows._model import ModelRows as ModelRows
from npeff_jax.factorization.rows._model import kernel_of_model as kernel_of_model
from npeff_jax.factorization.rows._model import model_rows as model_rows
from npeff_jax.factorization.rows._protocol import RowSpace as RowSpace
from npeff_jax.factorization.rows._protocol import Vectors as Vectors
from npeff_jax.factorization.rows._sketch import SketchedSpace as SketchedSpace
from npeff_jax.factorization.rows._sparse import SparseSpace as SparseSpace
