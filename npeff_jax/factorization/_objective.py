"""The objective of eq. 4, computed from inner products, and its restriction to a line.

    loss(W, G) = ‖F‖² − 2 Σ_ij W_ij Σ_{rows a of i} (a·g_j)² + Σ_jk (WᵀW)_jk (g_j·g_k)²

It depends on G only through A Gᵀ (N, r) and G Gᵀ (r, r); no m×m matrix is formed.
"""

import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Float, Int

from npeff_jax._machine import cores, on_cores
from npeff_jax._types import Coefficients, ComponentGram, RowProducts
from npeff_jax.factorization.row_spaces import matmul
from npeff_jax.factorization.row_spaces._blocks import row_squares

Members = tuple[Int[Array, "_ _"], ...]
"""`members_of` on the devices."""


def members_of(owner: Int[np.ndarray, "N"], n: int) -> tuple[Int[np.ndarray, "_ _"], ...]:
    """Return index tables for `sum_over_rows`: the positions of each example's rows, padded with N.

    If padding to the largest number of rows would more than double the work, there are two tables: rows are summed in
    pieces of equal width, then pieces are summed. The tuple is empty if every example has exactly one row.
    """
    group = np.asarray(owner)
    tables: list[np.ndarray] = []
    while True:
        counts = np.bincount(group, minlength=n)
        if len(group) == n and (counts == 1).all():
            return tuple(tables)
        most = max(int(counts.max(initial=0)), 1)
        width = most if n * most <= 2 * len(group) else max(2, 2 * len(group) // n)
        pieces = np.maximum(-(-counts // width), 1) if width >= most else -(-counts // width)
        first = np.concatenate([[0], np.cumsum(counts)])[:-1]
        piece = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        table = (np.repeat(first, pieces) + width * piece)[:, None] + np.arange(width)
        end = np.repeat(first + counts, pieces)[:, None]
        tables.append(np.where(table < end, table, len(group)).astype(np.int32))
        group = np.repeat(np.arange(n), pieces)


def sum_over_rows(x: Float[Array, "N r"], members: Members) -> Float[Array, "n r"]:
    """Sum over the rows of each example. Uses gathers, because the order of summation of a scatter varies on GPUs."""
    for table in members:
        x = jnp.sum(x.at[table].get(mode="fill", fill_value=0), axis=1)
    return x


def loss_terms(
    W: Coefficients, numerator: Float[Array, "n r"], quadratic: ComponentGram, penalty: Float[Array, "r"] | float = 0.0
) -> Float[Array, "2 r"]:
    """Return the cross and the quadratic term of the loss per component; `relative_loss` combines them in float64.

    Args:
        W: coefficients.
        numerator: Σ_rows (a·g_j)² for LRM-NPEFF, X Hᵀ for D-NPEFF.
        quadratic: (g_j·g_k)² for LRM-NPEFF, h_j·h_k for D-NPEFF.
        penalty: penalty of the ties to marks (`tie_penalty`), which adds to the diagonal of WᵀW.
    """
    own = jnp.sum(matmul(W.T, W) * quadratic, axis=1)
    if not isinstance(penalty, float):
        own = own + penalty * jnp.diagonal(quadratic)
    return jnp.stack([jnp.sum(W * numerator, axis=0), own])


def relative_loss(terms: np.ndarray, squared_norm: float) -> np.ndarray:
    """Return ‖F − Σ W H‖² / ‖F‖² from `loss_terms`, in float64 because the terms nearly cancel for a good fit."""
    terms = np.asarray(terms, np.float64)
    with np.errstate(invalid="ignore"):  # the driver handles non-finite losses
        return np.asarray((squared_norm - 2 * terms[..., 0, :].sum(-1) + terms[..., 1, :].sum(-1)) / squared_norm)


def line_coefficients(
    WW: ComponentGram,
    AD: RowProducts,
    GG: ComponentGram,
    GD: ComponentGram,
    DD: ComponentGram,
    owner_W: RowProducts,
    slope: Float[Array, ""],
) -> Float[Array, "4"]:
    """Return the coefficients of the loss along G + t D, c₀ t + c₁ t² + c₂ t³ + c₃ t⁴ up to a constant.

    With S = G Dᵀ + D Gᵀ, G Gᵀ becomes G Gᵀ + t S + t² D Dᵀ and A Gᵀ becomes A Gᵀ + t A Dᵀ.

    Args:
        WW: WᵀW.
        AD: A Dᵀ.
        GG: G Gᵀ.
        GD: G Dᵀ.
        DD: D Dᵀ.
        owner_W: W repeated over each example's rows.
        slope: c₀ = ⟨∇_G loss, D⟩, computed from the gradient; as a difference of these sums it would be inaccurate near
            a minimum.
    """
    S = GD + GD.T
    c1 = jnp.sum(WW * (S * S + 2 * GG * DD)) - 2 * jnp.sum(owner_W * AD * AD)
    c2 = 2 * jnp.sum(WW * S * DD)
    c3 = jnp.sum(WW * DD * DD)
    return jnp.stack([slope, c1, c2, c3])


def squared_norms(A: scipy.sparse.csr_array, n_rows: np.ndarray) -> Float[np.ndarray, "n"]:
    """Return ‖F_i‖² = ‖A_i A_iᵀ‖² of each example, from the c×c Gram matrix of its rows, in float64."""
    stops = np.cumsum(n_rows)

    def of_part(examples: Int[np.ndarray, "part"]) -> Float[np.ndarray, "part"]:
        own, start = n_rows[examples], stops[examples[0]] - n_rows[examples[0]]
        rows, owner = A[start : stops[examples[-1]]], np.repeat(np.arange(len(own)), own)
        total = np.bincount(owner, row_squares(rows) ** 2, len(own))
        for lag in range(1, int(own.max(initial=0))):  # all pairs of rows `lag` apart, over all examples
            left = np.flatnonzero(owner[:-lag] == owner[lag:])
            dots = np.asarray(rows[left].multiply(rows[left + lag]).sum(axis=1, dtype=np.float64)).reshape(-1)
            total += np.bincount(owner[left], 2 * dots**2, len(own))
        return total

    parts = [part for part in np.array_split(np.arange(len(n_rows)), cores()) if len(part)]
    return np.concatenate(on_cores(of_part, parts))
