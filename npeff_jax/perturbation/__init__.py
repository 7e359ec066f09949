"""A component to an edit of the parameters, and how far predictions move under it."""

from npeff_jax.perturbation._dataset_fisher import Estimate as Estimate
from npeff_jax.perturbation._dataset_fisher import Expectation as Expectation
from npeff_jax.perturbation._dataset_fisher import Sampling as Sampling
from npeff_jax.perturbation._dataset_fisher import dataset_fisher as dataset_fisher
from npeff_jax.perturbation._diagonal import DiagonalEdit as DiagonalEdit
from npeff_jax.perturbation._diagonal import DiagonalPerturbation as DiagonalPerturbation
from npeff_jax.perturbation._diagonal import Floor as Floor
from npeff_jax.perturbation._diagonal import Targets as Targets
from npeff_jax.perturbation._diagonal import UnreachableKLError as UnreachableKLError
from npeff_jax.perturbation._diagonal import diagonal_edit as diagonal_edit
from npeff_jax.perturbation._diagonal import shares as shares
from npeff_jax.perturbation._direction import PAPER_THRESHOLD as PAPER_THRESHOLD
from npeff_jax.perturbation._direction import all_direction_weights as all_direction_weights
from npeff_jax.perturbation._direction import check_component as check_component
from npeff_jax.perturbation._direction import check_decomposition_of as check_decomposition_of
from npeff_jax.perturbation._direction import component_direction as component_direction
from npeff_jax.perturbation._direction import component_directions as component_directions
from npeff_jax.perturbation._direction import perturb as perturb
from npeff_jax.perturbation._divergence import batches as batches
from npeff_jax.perturbation._divergence import iterate_perturbed_kl as iterate_perturbed_kl
from npeff_jax.perturbation._divergence import perturbed_kl as perturbed_kl
from npeff_jax.perturbation._divergence import perturbed_predictions as perturbed_predictions
from npeff_jax.perturbation._loss import loss_gradient as loss_gradient
from npeff_jax.perturbation._loss import loss_sign as loss_sign
from npeff_jax.perturbation._rejection import pseudo_fisher_gram as pseudo_fisher_gram
