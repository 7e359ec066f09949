"""Coefficients of examples for fixed pseudo-Fishers: one convex non-negative least-squares problem per example."""

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
"""Size of a block of pseudo-Fishers in memory, in bytes."""


@dataclasses.dataclass(frozen=True, eq=False)
class CoefficientFit:
    """Coefficients fitted to fixed components.

    Attributes:
        coefficients: W, (n, r), non-negative.
        kkt_residual: (n,), distance of each row from optimality: the largest change that an exact update of one
            coefficient would make, relative to the largest coefficient that a component would get alone.
        example_loss: (n,), ‖F_i − Σ_j W_ij H_j‖² / ‖F_i‖².
        loss: ‖F − Σ_j W_j H_j‖² / ‖F‖² over all examples.
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
        pefs: PEFs of the same model and kind. Entries at parameters that the decomposition pruned count as unexplained.
        tolerance: `CoefficientFit.kkt_residual` to reach.
        max_sweeps: maximum number of coordinate sweeps; check ``kkt_residual`` if they may not suffice.
        chunk_size: number of examples solved at a time.

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
        chunk = np.pad(part, ((0, chunk_size - len(part)), (0, 0)))  # equal shapes: one compilation
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
    """Compute the coefficients of each component as if it were the only one: ⟨F_i, H_j⟩ / ‖H_j‖².

    For unit vectors this is g_jᵀ F_i g_j: twice the second-order KL divergence of a unit move along g_j, relative to
    the norm of the PEF (eq. 2), provided that the logits are smooth in the parameters. They are not for compiled
    programs (Tracr), whose weights lie on ReLU kinks: there the effects of moves along +g_j and −g_j differ by a factor
    of about two, and g_jᵀ F_i g_j gives the smaller one. W, the joint fit of all components, is sparse, so it ranks
    most examples equal at zero; these coefficients rank all examples.

    Args:
        decomposition: the components. A component with a zero vector gets zero coefficients.
        pefs: PEFs of the same model and kind, the decomposed ones or others.

    Raises:
        ValueError: PEFs of another model or kind, or no examples.
    """
    check_same_origin(decomposition, pefs)
    stacked = stack(pefs, parameter_indices=decomposition.parameter_indices)
    b, P = fixed_products(stacked, decomposition.pseudo_fishers, low_rank=decomposition.kind is FisherKind.LOW_RANK)
    return b / np.where(np.diagonal(P) > 0, np.diagonal(P), 1.0)


def fit_tied(decomposition: Decomposition, pefs: Pefs, ties: Ties) -> tuple[Float[np.ndarray, "n r"], float]:
    """Fit coefficients under the ties of named components, which come first; return them and the loss of eq. 4."""
    low_rank = decomposition.kind is FisherKind.LOW_RANK
    stacked = stack(pefs, parameter_indices=decomposition.parameter_indices)
    b, P = fixed_products(stacked, decomposition.pseudo_fishers, low_rank=low_rank)
    W = jax.device_get(solve_tied(*jax.device_put((b, P, jax.device_get(ties)))))
    w = W.astype(np.float64)
    return W, float(1 + np.sum(w * (w @ P - 2 * b)) / stacked.squared_norm)


def fixed_products(
    stacked: Stack, vectors: RowArray, *, low_rank: bool
) -> tuple[Float[np.ndarray, "n r"], Float[np.ndarray, "r r"]]:
    """Compute b and P of the least-squares problem: Σ_rows (a·g_j)² and (g_j·g_k)², or x·h_j and h_j·h_k.

    Vectors are read in blocks of components and rows in blocks of examples, so both may be larger than memory.
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
    """Raise unless ``pefs`` have the model, the kind and the normalization of the decomposed PEFs."""
    if not isinstance(decomposition, Decomposition) or not isinstance(pefs, Pefs):
        got = f"({type(decomposition).__name__}, {type(pefs).__name__})"
        raise TypeError(f"got {got}; pass the decomposition first and the PEFs second")
    remedy = "compute these PEFs with the model and the settings of those that were decomposed"
    check_same("the decomposition", decomposition.schema.identity, "these PEFs", pefs.schema.identity, remedy=remedy)
