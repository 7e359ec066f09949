"""Coefficients of examples for fixed pseudo-Fishers: one convex non-negative least squares an example."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from npeff_jax.factorization._decomposition import Decomposition
from npeff_jax.factorization._nonnegative import solve_nonnegative
from npeff_jax.factorization._stack import Stack, stack
from npeff_jax.pefs import Kind, Pefs


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """Coefficients fitted to fixed components.

    Attributes:
        coefficients: W, (n, r), non-negative.
        kkt_residual: (n,), how far each row is from optimal: the largest move that one exact update of one coefficient
            would still make, relative to the largest coefficient that one component alone would get.
        example_loss: (n,), ‖F_i − Σ_j W_ij H_j‖² / ‖F_i‖².
        loss: the same over all examples together.
    """

    coefficients: Float[np.ndarray, "n r"]
    kkt_residual: Float[np.ndarray, "n"]
    example_loss: Float[np.ndarray, "n"]
    loss: float


def fit_coefficients(
    decomposition: Decomposition,
    pefs: Pefs,
    *,
    tolerance: float = 1e-5,
    max_sweeps: int = 10_000,
    chunk_size: int = 1024,
) -> Fit:
    """Fit coefficients of other examples' PEFs, with the pseudo-Fishers fixed.

    Args:
        decomposition: the components.
        pefs: of the same model and kind. What lies on parameters that the decomposition pruned counts as unexplained.
        tolerance: of `Fit.kkt_residual`.
        max_sweeps: coordinate sweeps at most; residuals then say how far it got.
        chunk_size: examples at a time.

    Raises:
        ValueError: PEFs of another model or kind, or no examples.
    """
    check_same_origin(decomposition, pefs)
    low_rank = decomposition.kind is Kind.LOW_RANK
    stacked = stack(pefs, parameter_indices=decomposition.parameter_indices)
    G = np.asarray(decomposition.pseudo_fishers[:])
    GG = (G.astype(np.float64) @ G.astype(np.float64).T).astype(np.float32)
    P = GG * GG if low_rank else GG
    W, residual, terms = [], [], []
    for first in range(0, stacked.n_examples, chunk_size):
        size = min(chunk_size, stacked.n_examples - first)
        b = np.zeros((chunk_size, len(G)), np.float32)  # padded, so that every chunk is one compilation
        b[:size] = numerators(stacked, G, first, first + size, low_rank=low_rank)
        found, gap = solve_nonnegative(jnp.zeros_like(b), jnp.asarray(b), jnp.asarray(P), tolerance, max_sweeps)
        W.append(np.asarray(found)[:size])
        residual.append(np.asarray(gap)[:size])
        w = W[-1].astype(np.float64)
        terms.append(np.einsum("ij,ij->i", w, w @ P - 2 * b[:size]))
    loss = stacked.example_norms + np.concatenate(terms)
    return Fit(
        coefficients=np.concatenate(W),
        kkt_residual=np.concatenate(residual),
        example_loss=loss / np.where(stacked.example_norms > 0, stacked.example_norms, 1.0),
        loss=float(loss.sum() / stacked.squared_norm),
    )


def numerators(stacked: Stack, G: np.ndarray, first: int, last: int, *, low_rank: bool) -> Float[np.ndarray, "n r"]:
    """Σ_rows (a·g_j)², or x·h_j, of some examples."""
    rows = slice(*np.searchsorted(stacked.owner, [first, last]))
    AG = stacked.A[rows] @ G.T
    b = np.zeros((last - first, len(G)), np.float32)
    np.add.at(b, stacked.owner[rows] - first, AG * AG if low_rank else AG)
    return b


def check_same_origin(decomposition: Decomposition, pefs: Pefs) -> None:
    """Raise unless ``pefs`` are of the decomposition's model and kind."""
    ours, theirs = decomposition.schema, pefs.schema
    if ours.kind is not theirs.kind:
        raise ValueError(
            f"the decomposition is of {ours.kind.value} PEFs, these are {theirs.kind.value}; "
            "compute PEFs with the representation of the decomposition"
        )
    if ours.model != theirs.model or ours.layout != theirs.layout:
        what = "parameters" if ours.model != theirs.model else "mask or parameter shapes"
        raise ValueError(
            f"these PEFs are of a model with other {what} (fingerprint {theirs.model}, expected {ours.model}); "
            "compute them with the model that was decomposed"
        )
