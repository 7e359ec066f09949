"""Coefficients of examples for fixed pseudo-Fishers: one convex non-negative least squares an example."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from npeff_jax._checks import check_integer, check_real
from npeff_jax._html import facts_html, histogram_html
from npeff_jax._identity import check_same
from npeff_jax._types import RowArray
from npeff_jax.factorization._decomposition import Decomposition
from npeff_jax.factorization._nonnegative import solve_nonnegative
from npeff_jax.factorization._stack import Stack, stack
from npeff_jax.factorization._tunings import Ties, solve_tied
from npeff_jax.pefs import FisherKind, Pefs

BLOCK_BYTES = 1 << 28
"""Size of a block of pseudo-Fishers in memory."""


@dataclasses.dataclass(frozen=True, eq=False)
class CoefficientFit:
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

    def __repr__(self) -> str:
        n, r = self.coefficients.shape
        return f"Fit of {n} examples to {r} components: loss {self.loss:.4f}, KKT residuals to {self._worst:.1e}"

    def _repr_html_(self) -> str:
        facts = [
            ("examples", len(self.coefficients)),
            ("components", self.coefficients.shape[1]),
            ("loss / ‖F‖²", self.loss),
            ("coefficients that are zero", f"{np.mean(self.coefficients == 0):.0%}"),
            ("largest KKT residual", f"{self._worst:.1e}"),
        ]
        return facts_html("Coefficients, fitted", facts, histogram_html(self.example_loss, "each example's own loss"))

    @property
    def _worst(self) -> float:
        return float(self.kkt_residual.max(initial=0.0))


def fit_coefficients(
    decomposition: Decomposition,
    pefs: Pefs,
    *,
    tolerance: float = 1e-5,
    max_sweeps: int = 10_000,
    chunk_size: int = 1024,
) -> CoefficientFit:
    """Fit coefficients of other examples' PEFs, with the pseudo-Fishers fixed.

    Args:
        decomposition: the components.
        pefs: of the same model and kind. What lies on parameters that the decomposition pruned counts as unexplained.
        tolerance: of `CoefficientFit.kkt_residual`.
        max_sweeps: coordinate sweeps at most; residuals then say how far it got.
        chunk_size: examples at a time.

    Raises:
        ValueError: PEFs of another model or kind, or no examples.
    """
    check_same_origin(decomposition, pefs)
    max_sweeps, chunk_size = check_integer("max_sweeps", max_sweeps, 0), check_integer("chunk_size", chunk_size)
    tolerance = check_real("tolerance", tolerance, 0.0, np.inf)
    low_rank = decomposition.kind is FisherKind.LOW_RANK
    stacked = stack(pefs, parameter_indices=decomposition.parameter_indices)
    b, P = fixed_products(stacked, decomposition.pseudo_fishers, low_rank=low_rank)
    W, residual, terms = [], [], []
    for first in range(0, stacked.n_examples, chunk_size):
        part = b[first : first + chunk_size]
        chunk = np.pad(part, ((0, chunk_size - len(part)), (0, 0)))  # every chunk is one compilation
        given = jax.device_put((np.zeros_like(chunk), chunk, P, np.asarray(tolerance, np.float32)))
        found, gap = jax.device_get(solve_nonnegative(*given, max_sweeps))
        W.append(found[: len(part)])
        residual.append(gap[: len(part)])
        w = W[-1].astype(np.float64)
        terms.append(np.einsum("ij,ij->i", w, w @ P - 2 * part))
    loss = stacked.example_norms + np.concatenate(terms)
    return CoefficientFit(
        coefficients=np.concatenate(W),
        kkt_residual=np.concatenate(residual),
        example_loss=loss / np.where(stacked.example_norms > 0, stacked.example_norms, 1.0),
        loss=float(loss.sum() / stacked.squared_norm),
    )


def fit_alone(decomposition: Decomposition, pefs: Pefs) -> Float[np.ndarray, "n r"]:
    """Compute each component's coefficients as if it were the only one: ⟨F_i, H_j⟩ / ‖H_j‖², not a share with others.

    For unit vectors this is g_jᵀ F_i g_j, where logits are smooth in the parameters twice the second-order KL of a unit
    move along g_j, relative to the norm of the PEF (eq. 2). At a kink it is not: a compiled program's weights sit on
    ReLU kinks, where the effects of a move along +g_j and −g_j differ by a factor of about two and g_jᵀ F_i g_j is the
    smaller one. W, the fit of all components together, is sparse: where few examples have a component, the order of the
    others is one of ties at zero; here every example has its place.

    Args:
        decomposition: the components. One that is zero gets coefficients of zero.
        pefs: of the same model and kind, the decomposed ones or others.

    Raises:
        ValueError: PEFs of another model or kind, or no examples.
    """
    check_same_origin(decomposition, pefs)
    stacked = stack(pefs, parameter_indices=decomposition.parameter_indices)
    b, P = fixed_products(stacked, decomposition.pseudo_fishers, low_rank=decomposition.kind is FisherKind.LOW_RANK)
    return b / np.where(np.diagonal(P) > 0, np.diagonal(P), 1.0)


def fit_tied(decomposition: Decomposition, pefs: Pefs, ties: Ties) -> tuple[Float[np.ndarray, "n r"], float]:
    """Fit coefficients under the ties of named components, which come first; and their loss of eq. 4."""
    low_rank = decomposition.kind is FisherKind.LOW_RANK
    stacked = stack(pefs, parameter_indices=decomposition.parameter_indices)
    b, P = fixed_products(stacked, decomposition.pseudo_fishers, low_rank=low_rank)
    W = jax.device_get(solve_tied(*jax.device_put((b, P, jax.device_get(ties)))))
    w = W.astype(np.float64)
    return W, float(1 + np.sum(w * (w @ P - 2 * b)) / stacked.squared_norm)


def fixed_products(
    stacked: Stack, vectors: RowArray, *, low_rank: bool
) -> tuple[Float[np.ndarray, "n r"], Float[np.ndarray, "r r"]]:
    """What does not depend on the coefficients: Σ_rows (a·g_j)² and (g_j·g_k)², or x·h_j and h_j·h_k.

    Vectors are read a block of components at a time, rows a block of examples: both may be larger than memory.
    """
    r, m = vectors.shape
    size = max(1, BLOCK_BYTES // (4 * m))
    blocks = [slice(first, min(first + size, r)) for first in range(0, r, size)]
    b, P = np.zeros((stacked.n_examples, r), np.float32), np.zeros((r, r), np.float32)
    for k, left in enumerate(blocks):
        G = np.asarray(vectors[left])
        for first, rows in stacked.A.read():
            AG = np.asarray(rows @ G.T)
            owner = stacked.owner[first : first + len(AG)]
            starts = np.flatnonzero(np.diff(owner, prepend=-1))  # each example's rows are in one block
            b[owner[starts], left] = np.add.reduceat(AG * AG if low_rank else AG, starts, axis=0)
        for right in blocks[k:]:
            GG = G @ (G if right == left else np.asarray(vectors[right])).T
            P[left, right] = GG * GG if low_rank else GG
            P[right, left] = P[left, right].T
    return b, P


def check_same_origin(decomposition: Any, pefs: Any) -> None:
    """Raise unless ``pefs`` are of the decomposition's model and kind, in the same unit."""
    if not isinstance(decomposition, Decomposition) or not isinstance(pefs, Pefs):
        got = f"({type(decomposition).__name__}, {type(pefs).__name__})"
        raise TypeError(f"got {got}; pass the decomposition first and the PEFs second")
    remedy = "compute these PEFs with the model and the settings of those that were decomposed"
    check_same("the decomposition", decomposition.schema.identity, "these PEFs", pefs.schema.identity, remedy=remedy)
