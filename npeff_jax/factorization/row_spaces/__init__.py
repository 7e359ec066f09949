"""Row spaces: representations of the rows A, with the products that solvers need."""

from npeff_jax.factorization.row_spaces._base import Cost as Cost
from npeff_jax.factorization.row_spaces._base import Inner as Inner
from npeff_jax.factorization.row_spaces._base import ProductPrecision as ProductPrecision
from npeff_jax.factorization.row_spaces._base import RowChoice as RowChoice
from npeff_jax.factorization.row_spaces._base import RowSpace as RowSpace
from npeff_jax.factorization.row_spaces._base import Vectors as Vectors
from npeff_jax.factorization.row_spaces._base import matmul as matmul
from npeff_jax.factorization.row_spaces._base import name_of as name_of
from npeff_jax.factorization.row_spaces._blocks import BlockedRows as BlockedRows
from npeff_jax.factorization.row_spaces._choose import check_rows as check_rows
from npeff_jax.factorization.row_spaces._choose import choose as choose
from npeff_jax.factorization.row_spaces._dense import DenseRows as DenseRows
from npeff_jax.factorization.row_spaces._dense import DenseSpace as DenseSpace
from npeff_jax.factorization.row_spaces._kernel import KernelRows as KernelRows
from npeff_jax.factorization.row_spaces._kernel import KernelSpace as KernelSpace
from npeff_jax.factorization.row_spaces._model import ModelRows as ModelRows
from npeff_jax.factorization.row_spaces._model import kernel_of_model as kernel_of_model
from npeff_jax.factorization.row_spaces._model import model_rows as model_rows
from npeff_jax.factorization.row_spaces._sketched import SketchedSpace as SketchedSpace
from npeff_jax.factorization.row_spaces._sparse import SparseRows as SparseRows
from npeff_jax.factorization.row_spaces._sparse import SparseSpace as SparseSpace
