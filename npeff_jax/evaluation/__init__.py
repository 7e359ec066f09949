"""How far a decomposition can be trusted: selectivity, matching of runs, concept search, baselines."""

from npeff_jax.evaluation._prediction import component_curvatures as component_curvatures
from npeff_jax.evaluation._prediction import predicted_kl as predicted_kl
from npeff_jax.evaluation._ranking import rank_correlation as rank_correlation
from npeff_jax.evaluation._ranking import top_examples as top_examples
from npeff_jax.evaluation._selectivity import selectivity as selectivity
from npeff_jax.evaluation._selectivity_table import Selectivity as Selectivity
