"""How far a decomposition can be trusted: selectivity, matching of runs, concept search, baselines."""

from npeff_jax.evaluation._activations import activations as activations
from npeff_jax.evaluation._activations import gradient_features as gradient_features
from npeff_jax.evaluation._activations import logit_gradients as logit_gradients
from npeff_jax.evaluation._clustering import Clusters as Clusters
from npeff_jax.evaluation._clustering import cluster as cluster
from npeff_jax.evaluation._edits import diagonal_edits as diagonal_edits
from npeff_jax.evaluation._edits import low_rank_edits as low_rank_edits
from npeff_jax.evaluation._edits import random_edits as random_edits
from npeff_jax.evaluation._matching import RunComparison as RunComparison
from npeff_jax.evaluation._matching import Splits as Splits
from npeff_jax.evaluation._matching import Stability as Stability
from npeff_jax.evaluation._matching import coefficient_similarities as coefficient_similarities
from npeff_jax.evaluation._matching import compare_runs as compare_runs
from npeff_jax.evaluation._matching import find_splits as find_splits
from npeff_jax.evaluation._matching import similarity_to_final as similarity_to_final
from npeff_jax.evaluation._matching import stability as stability
from npeff_jax.evaluation._prediction import component_curvatures as component_curvatures
from npeff_jax.evaluation._prediction import predicted_kl as predicted_kl
from npeff_jax.evaluation._ranking import rank_correlation as rank_correlation
from npeff_jax.evaluation._ranking import top_examples as top_examples
from npeff_jax.evaluation._selectivity import Fitted as Fitted
from npeff_jax.evaluation._selectivity import selectivity as selectivity
from npeff_jax.evaluation._selectivity_table import Selectivity as Selectivity
from npeff_jax.evaluation._tcav import Tcav as Tcav
from npeff_jax.evaluation._tcav import tcav as tcav
