"""NPEFF in JAX: explain a trained network's predictions through its parameters.

The path of the data: a `Model` and its examples give PEFs (`compute_pefs`), PEFs give components (`decompose`),
components give directions in parameter space (`component_direction`) that are checked on the model (`selectivity`) and
shown (`write_report`).
"""

from npeff_jax import models as models
from npeff_jax import tasks as tasks
from npeff_jax._sharding import make_mesh as make_mesh
from npeff_jax._version import __version__ as __version__
from npeff_jax.evaluation import Nulls as Nulls
from npeff_jax.evaluation import Selectivity as Selectivity
from npeff_jax.evaluation import compare_runs as compare_runs
from npeff_jax.evaluation import find_splits as find_splits
from npeff_jax.evaluation import predicted_kl as predicted_kl
from npeff_jax.evaluation import scan as scan
from npeff_jax.evaluation import selectivity as selectivity
from npeff_jax.evaluation import stability as stability
from npeff_jax.evaluation import top_examples as top_examples
from npeff_jax.factorization import HALS as HALS
from npeff_jax.factorization import Checkpoints as Checkpoints
from npeff_jax.factorization import CoefficientFit as CoefficientFit
from npeff_jax.factorization import DampedALS as DampedALS
from npeff_jax.factorization import Decomposition as Decomposition
from npeff_jax.factorization import DenseRows as DenseRows
from npeff_jax.factorization import GradientDescent as GradientDescent
from npeff_jax.factorization import History as History
from npeff_jax.factorization import InitialFactors as InitialFactors
from npeff_jax.factorization import Iterate as Iterate
from npeff_jax.factorization import KernelRows as KernelRows
from npeff_jax.factorization import ModelRows as ModelRows
from npeff_jax.factorization import Multiplicative as Multiplicative
from npeff_jax.factorization import Problem as Problem
from npeff_jax.factorization import ProductPrecision as ProductPrecision
from npeff_jax.factorization import Solver as Solver
from npeff_jax.factorization import SparseRows as SparseRows
from npeff_jax.factorization import Stopping as Stopping
from npeff_jax.factorization import Tuning as Tuning
from npeff_jax.factorization import decompose as decompose
from npeff_jax.factorization import expand as expand
from npeff_jax.factorization import fit_coefficients as fit_coefficients
from npeff_jax.factorization import load_decomposition as load_decomposition
from npeff_jax.factorization import model_rows as model_rows
from npeff_jax.factorization import read_tunings as read_tunings
from npeff_jax.models import Bernoulli as Bernoulli
from npeff_jax.models import Categorical as Categorical
from npeff_jax.models import Gaussian as Gaussian
from npeff_jax.models import Model as Model
from npeff_jax.pefs import Diagonal as Diagonal
from npeff_jax.pefs import FisherKind as FisherKind
from npeff_jax.pefs import LowRank as LowRank
from npeff_jax.pefs import Normalization as Normalization
from npeff_jax.pefs import Pefs as Pefs
from npeff_jax.pefs import PerRow as PerRow
from npeff_jax.pefs import Representation as Representation
from npeff_jax.pefs import RowBasis as RowBasis
from npeff_jax.pefs import RunPlan as RunPlan
from npeff_jax.pefs import Sampled as Sampled
from npeff_jax.pefs import Selection as Selection
from npeff_jax.pefs import SharedSupport as SharedSupport
from npeff_jax.pefs import compute_pefs as compute_pefs
from npeff_jax.pefs import fisher_vector_product as fisher_vector_product
from npeff_jax.pefs import load_pefs as load_pefs
from npeff_jax.pefs import pef_rows as pef_rows
from npeff_jax.pefs import plan as plan
from npeff_jax.perturbation import DiagonalEdit as DiagonalEdit
from npeff_jax.perturbation import DirectionEdit as DirectionEdit
from npeff_jax.perturbation import Edit as Edit
from npeff_jax.perturbation import KLBudget as KLBudget
from npeff_jax.perturbation import Passes as Passes
from npeff_jax.perturbation import component_direction as component_direction
from npeff_jax.perturbation import dataset_fisher as dataset_fisher
from npeff_jax.perturbation import diagonal_move as diagonal_move
from npeff_jax.perturbation import loss_sign as loss_sign
from npeff_jax.perturbation import perturb as perturb
from npeff_jax.perturbation import perturbed_kl as perturbed_kl
from npeff_jax.report import write_report as write_report
