"""What a decomposition predicts of a perturbation's effect (eq. 5)."""

import numpy as np
from jaxtyping import Float

from npeff_jax._types import PyTree
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.pefs import FisherKind, Normalization


def predicted_kl(
    model: Model,
    decomposition: Decomposition,
    coefficients: Float[np.ndarray, "n r"],
    norms: Float[np.ndarray, "n"],
    direction: PyTree,
    scale: float = 1.0,
) -> Float[np.ndarray, "n"]:
    """KL ≈ α_i/2 Σ_j W_ij δᵀ H_j δ of every example, in nats (eq. 5), without running the model.

    Args:
        model: the model that was decomposed.
        decomposition: either kind.
        coefficients: W of the examples.
        norms: α, the Frobenius norms of their PEFs (`Pefs.norms`).
        direction: a pytree shaped like the parameters.
        scale: δ = scale · direction.
    """
    curvature = component_curvatures(decomposition, np.asarray(model.space.ravel(direction)))
    # Raw PEFs were never divided by their norm, so their coefficients carry it.
    raw = decomposition.schema.normalization == Normalization.NONE.value
    return (1.0 if raw else norms) / 2 * (coefficients @ curvature) * scale**2


def component_curvatures(decomposition: Decomposition, direction: Float[np.ndarray, "m"]) -> Float[np.ndarray, "r"]:
    """δᵀ H_j δ of every component: (g_j·δ)², or h_j·δ² for diagonal ones."""
    delta = direction[decomposition.parameter_indices].astype(np.float32)
    vectors = decomposition.pseudo_fishers
    delta = delta if decomposition.kind is FisherKind.LOW_RANK else delta**2
    products = np.array([vectors[j] @ delta for j in range(len(vectors))], np.float64)  # a row at a time: G may be huge
    return products**2 if decomposition.kind is FisherKind.LOW_RANK else products
