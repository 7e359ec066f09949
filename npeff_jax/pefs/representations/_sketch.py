"""The principal rows of an example with many classes, from a few gradients: a randomised range finder.

With B the (C, m) class rows, F = Bᵀ B. The span P of (B Bᵀ) Ω, with Ω a few random vectors, nearly holds the largest
left singular vectors of B (Halko, Martinsson and Tropp, "Finding structure with randomness", section 4.5), so the rows
P B nearly hold the largest principal rows. They are exact combinations of class rows: (P B)ᵀ (P B) never exceeds F, and
what is missing is the Fisher of the rows left outside the span.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from npeff_jax._types import Cotangents, Logits
from npeff_jax.pefs.representations._base import Prediction, Pullback, scaled_cotangents
from npeff_jax.pefs.representations._classes import lost_mass


def sketched(at: Prediction, size: int, kept: Bool[Array, "C"]) -> Pullback:
    """Return what to pull back for one example.

    Args:
        at: the example.
        size: dimensions of the span.
        kept: classes whose rows are in B.
    """
    for_span, for_probe = jax.random.split(at.key)
    part = kept.astype(jnp.float32)[None]

    def combine(weights: Float[Array, "c C"]) -> Cotangents:
        """Combinations of the kept classes' rows."""
        return at.output.weighted(at.logits, weights * part)

    omega = jax.random.normal(for_span, (size, at.logits.size), jnp.float32)
    _, unit = scaled_cotangents(combine(omega))

    def kernel(weights: Logits) -> Logits:
        """(B Bᵀ) w; no row is kept."""
        change = at.push(at.pull(combine(weights[None])[0] / unit))
        (products,) = jax.linear_transpose(combine, weights[None])(change[None].astype(jnp.float32) / unit)
        return products[0]

    P = _orthonormal(jax.lax.map(kernel, omega))
    signs = jax.random.rademacher(for_probe, (at.logits.size,), jnp.float32)
    outside = at.output.weighted(at.logits, (signs - (P @ (signs * part[0])) @ P)[None])[0]
    return Pullback.of(combine(P), None, lost_mass(at, kept), outside)


def _orthonormal(vectors: Float[Array, "c C"]) -> Float[Array, "c C"]:
    """An orthonormal basis of the rows by Gram-Schmidt: a decomposition of batches of matrices is what deadlocks on
    CPUs. Each row is cleared twice of those before it. What is left of a row that depends on them is rounding, which
    the second time vanishes again: it becomes zero.
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
