"""Randomised range finder: the principal rows of an example with many classes from a few gradients.

With B the (C, m) class rows, F = Bᵀ B. The span of (B Bᵀ) Ω, with Ω a few random vectors and orthonormal basis P,
approximates that of the largest left singular vectors of B (Halko, Martinsson and Tropp, "Finding structure with
randomness", section 4.5), so the rows P B approximate the largest principal rows. Since they are exact combinations of
class rows, (P B)ᵀ (P B) ≤ F, and the difference is the Fisher of the rows outside the span.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from npeff_jax._types import Cotangents, Logits
from npeff_jax.pefs.representations._base import Prediction, Pullback, scaled_cotangents
from npeff_jax.pefs.representations._classes import lost_mass


def sketched(at: Prediction, size: int, kept: Bool[Array, "C"]) -> Pullback:
    """Return the cotangents of the approximate principal rows of one example.

    Args:
        at: the prediction for the example.
        size: dimension of the span.
        kept: classes whose rows are in B.
    """
    for_span, for_probe = jax.random.split(at.key)
    part = kept.astype(jnp.float32)[None]

    def combine(weights: Float[Array, "c C"]) -> Cotangents:
        """Return linear combinations of the rows of the kept classes."""
        return at.output.weighted(at.logits, weights * part)

    omega = jax.random.normal(for_span, (size, at.logits.size), jnp.float32)
    _, unit = scaled_cotangents(combine(omega))

    def kernel(weights: Logits) -> Logits:
        """Compute (B Bᵀ) w without forming B."""
        change = at.push(at.pull(combine(weights[None])[0] / unit))
        (products,) = jax.linear_transpose(combine, weights[None])(change[None].astype(jnp.float32) / unit)
        return products[0]

    P = _orthonormal(jax.lax.map(kernel, omega))
    signs = jax.random.rademacher(for_probe, (at.logits.size,), jnp.float32)
    outside = at.output.weighted(at.logits, (signs - (P @ (signs * part[0])) @ P)[None])[0]
    return Pullback.of(combine(P), None, lost_mass(at, kept), outside)


def _orthonormal(vectors: Float[Array, "c C"]) -> Float[Array, "c C"]:
    """Return an orthonormal basis of the rows by Gram-Schmidt, because batched QR deadlocks on CPUs.

    Each row is orthogonalised twice against those before it. The remainder of a linearly dependent row is rounding,
    which the second pass removes; the row becomes zero.
    """

    def cleared(row: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
        row = row - (basis @ row) @ basis
        norm = jnp.linalg.norm(row)
        return row / jnp.maximum(norm, jnp.finfo(row.dtype).tiny), norm

    def one_more(i: jax.Array, basis: jax.Array) -> jax.Array:
        before = jnp.where(jnp.arange(len(basis))[:, None] < i, basis, jnp.zeros_like(basis))
        row, _ = cleared(basis[i], before)
        row, left = cleared(row, before)
        return basis.at[i].set(jnp.where(left > 0.5, row, jnp.zeros_like(row)))

    return jax.lax.fori_loop(0, len(vectors), one_more, vectors)
