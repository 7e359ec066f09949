"""A component to an edit of the parameters, and how far predictions move under it."""

from npeff_jax.perturbation._direction import PAPER_THRESHOLD as PAPER_THRESHOLD
from npeff_jax.perturbation._direction import all_direction_weights as all_direction_weights
from npeff_jax.perturbation._direction import check_component as check_component
from npeff_jax.perturbation._direction import check_decomposition_of as check_decomposition_of
from npeff_jax.perturbation._direction import component_direction as component_direction
from npeff_jax.perturbation._direction import component_directions as component_directions
from npeff_jax.perturbation._direction import perturb as perturb
from npeff_jax.perturbation._divergence import iterate_perturbed_kl as iterate_perturbed_kl
from npeff_jax.perturbation._divergence import perturbed_kl as perturbed_kl
from npeff_jax.perturbation._rejection import pseudo_fisher_gram as pseudo_fisher_gram
