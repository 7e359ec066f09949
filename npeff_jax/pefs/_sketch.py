"""The principal rows of an example with many classes, from a few gradients: a randomised range finder.

With B the (C, m) class rows, F = Bᵀ B. The span P of (B Bᵀ) Ω, with Ω a few random vectors, nearly holds the largest
left singular vectors of B (Halko, Martinsson and Tropp, "Finding structure with randomness", section 4.5), so the rows
P B nearly hold the largest principal rows. They are exact combinations of class rows: (P B)ᵀ (P B) never exceeds F, and
what is missing is the Fisher of the rows left outside the span.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from npeff_jax._types import Cotangents, Logits
from npeff_jax.models import Output
from npeff_jax.pefs._cotangents import Pullback, kept_classes, scaled, unit_of
from npeff_jax.pefs._representation import LowRank

Tree = tuple[jax.Array, ...]


def sketched_cotangents(
    output: Output,
    representation: LowRank,
    logits: Logits,
    pull: Callable[[Logits], Tree],
    push: Callable[[Tree], Logits],
    key: jax.Array,
) -> Pullback:
    """What to pull back for one example.

    Args:
        output: what the logits mean.
        representation: how many rows, and of which classes.
        logits: of the example.
        pull: Jᵀ, from the logits to the explained parameters.
        push: J.
        key: the example's own.
    """
    assert representation.sketch is not None
    for_span, for_probe = jax.random.split(key)
    kept = kept_classes(output, representation, logits)

    def combine(weights: Float[Array, "c C"]) -> Cotangents:
        """Combinations of the kept classes' rows."""
        return output.weighted(logits, weights * kept)

    omega = jax.random.normal(for_span, (representation.sketch, logits.size))
    unit = unit_of(combine(omega))

    def kernel(weights: Logits) -> Logits:
        """(B Bᵀ) w; no row is kept."""
        change = push(pull(combine(weights[None])[0] / unit))
        (products,) = jax.linear_transpose(combine, weights[None])(change[None] / unit)
        return products[0]

    P = _orthonormal(jax.lax.map(kernel, omega))
    signs = jax.random.rademacher(for_probe, (logits.size,), jnp.float32)
    outside = output.weighted(logits, (signs - (P @ (signs * kept)) @ P)[None])[0]
    mass = jnp.sum(jnp.where(kept, 0.0, output.probabilities(logits)))
    return scaled(combine(P), jnp.asarray(len(P)), mass, outside)


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
        before = jnp.where(jnp.arange(len(basis))[:, None] < i, basis, 0.0)
        row, _ = cleared(basis[i], before)
        row, left = cleared(row, before)
        return basis.at[i].set(jnp.where(left > 0.5, row, 0.0))

    return jax.lax.fori_loop(0, len(vectors), one_more, vectors)
