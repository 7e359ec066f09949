"""PEFs to decomposition: the alternating solvers of LRM-NPEFF and D-NPEFF, coefficient fitting and expansion."""

from npeff_jax.factorization._decomposition import Decomposition as Decomposition
from npeff_jax.factorization._decomposition import History as History
