"""Out of local minima: the component that is missed least gives its place to the row that is explained worst.

A run that stands still has often spent two components on one concept and one on two. Alternating steps do not leave
such a minimum; this exchange does, and a window of steps later the loss says whether it paid. Ten of ten starts then
reached the same loss on a digits network and on sixteen planted components, where without it three and two of ten did.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

PAYS = 1e-4
"""Relative decrease of the loss for which an exchange is kept: ten times what separates converged runs."""

SLOW = 1e-3
"""Relative decrease a step below which exchanges begin: what follows an exchange converges it further anyway."""


def worst_row(
    W: Float[np.ndarray, "n r"],
    AG: Float[np.ndarray, "N r"],
    GG: Float[np.ndarray, "r r"],
    energy: Float[np.ndarray, "N"],
    owner: Int[np.ndarray, "N"],
    visited: Bool[np.ndarray, "N"],
    *,
    quadratic: bool,
) -> int:
    """The row that the fit explains worst, of those not visited.

    What it leaves of a row is aᵀ (F_i − Σ_j W_ij g_j g_jᵀ) a / ‖a‖², taking F_i a for a ‖a‖², which is exact for
    orthogonal rows; for D-NPEFF the squared residual. On the host: a few passes over A Gᵀ, not worth a compilation.

    Args:
        W: coefficients.
        AG: A Gᵀ.
        GG: G Gᵀ.
        energy: ‖a‖² of each row.
        owner: the example of each row.
        visited: rows that were tried.
        quadratic: LRM-NPEFF (rows and vectors enter as a aᵀ and g gᵀ), else D-NPEFF.
    """
    own = W[owner]
    if quadratic:
        explained = np.einsum("ij,ij,ij->i", own, AG, AG)
        left = (energy**2 - explained) / np.where(energy > 0, energy, 1)
    else:
        left = energy + np.einsum("ij,ij->i", own, own @ GG - 2 * AG)
    return int(np.argmax(np.where(visited | (energy <= 0), -np.inf, left)))


def cost_of_removal(W: Float[np.ndarray, "n r"], P: Float[np.ndarray, "r r"]) -> Float[np.ndarray, "r"]:
    """What the loss would rise by without each component, the others refitted without bounds: ‖W_j‖² / (P⁻¹)_jj.

    One of two near copies costs next to nothing, however large its coefficients.

    Args:
        W: coefficients.
        P: (g_j·g_k)² for LRM-NPEFF, h_j·h_k for D-NPEFF.
    """
    P = P.astype(np.float64)
    ridge = 1e-6 * np.mean(np.diagonal(P)) * np.eye(len(P))  # copies make P singular; this is above its rounding
    return np.sum(W.astype(np.float64) ** 2, axis=0) / np.diagonal(np.linalg.inv(P + ridge))
