"""Solvers: the algorithms that factorize a `Problem`, one per file, and their protocol."""

from npeff_jax.factorization.solvers._base import Factors as Factors
from npeff_jax.factorization.solvers._base import InitialFactors as InitialFactors
from npeff_jax.factorization.solvers._base import Solver as Solver
from npeff_jax.factorization.solvers._base import combine as combine
from npeff_jax.factorization.solvers._base import with_pattern as with_pattern
from npeff_jax.factorization.solvers._gradient_descent import GradientDescent as GradientDescent
from npeff_jax.factorization.solvers._hals import HALS as HALS
from npeff_jax.factorization.solvers._hals import DiagonalSolver as DiagonalSolver
from npeff_jax.factorization.solvers._lrm import DampedALS as DampedALS
from npeff_jax.factorization.solvers._lrm import LowRankSolver as LowRankSolver
from npeff_jax.factorization.solvers._multiplicative import Multiplicative as Multiplicative
