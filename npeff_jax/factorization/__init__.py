"""PEFs to decomposition: the alternating solvers of LRM-NPEFF and D-NPEFF, coefficient fitting and expansion."""

from npeff_jax.factorization._checkpoints import Checkpoints as Checkpoints
from npeff_jax.factorization._decompose import decompose as decompose
from npeff_jax.factorization._decomposition import Decomposition as Decomposition
from npeff_jax.factorization._decomposition import History as History
from npeff_jax.factorization._decomposition import load_decomposition as load_decomposition
from npeff_jax.factorization._expand import expand as expand
from npeff_jax.factorization._fit import CoefficientFit as CoefficientFit
from npeff_jax.factorization._fit import fit_alone as fit_alone
from npeff_jax.factorization._fit import fit_coefficients as fit_coefficients
from npeff_jax.factorization._loop import Iterate as Iterate
from npeff_jax.factorization._settings import HALS as HALS
from npeff_jax.factorization._settings import DampedALS as DampedALS
from npeff_jax.factorization._settings import DenseRows as DenseRows
from npeff_jax.factorization._settings import GradientDescent as GradientDescent
from npeff_jax.factorization._settings import InitialFactors as InitialFactors
from npeff_jax.factorization._settings import KernelRows as KernelRows
from npeff_jax.factorization._settings import Multiplicative as Multiplicative
from npeff_jax.factorization._settings import ProductPrecision as ProductPrecision
from npeff_jax.factorization._settings import SparseRows as SparseRows
from npeff_jax.factorization._settings import Stopping as Stopping
from npeff_jax.factorization.rows import ModelRows as ModelRows
from npeff_jax.factorization.rows import model_rows as model_rows
