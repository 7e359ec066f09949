"""The exact minimiser of a quartic: the step length that replaces a learning rate."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def minimize_quartic(c: Float[Array, "4"]) -> Float[Array, ""]:
    """The t that minimises c₀ t + c₁ t² + c₂ t³ + c₃ t⁴, with c₃ ≥ 0.

    The stationary points are the roots of a cubic, found in closed form and polished by Newton's method. (A companion
    matrix would need eigenvalues of a general matrix, which accelerators do not offer.) Where the quartic is flat, 0.
    """
    a, b, g, d = 4 * c[3], 3 * c[2], 2 * c[1], c[0]
    tiny = jnp.finfo(c.dtype).tiny
    safe = jnp.where(a > tiny, a, 1.0)
    # x = t / scale solves x³ + b x² + g x + d = 0 with coefficients of at most 1, so its roots lie within [-2, 2].
    scale = jnp.maximum(jnp.abs(b / safe), jnp.maximum(jnp.sqrt(jnp.abs(g / safe)), jnp.cbrt(jnp.abs(d / safe))))
    scale = jnp.maximum(scale, tiny)
    b, g, d = b / safe / scale, g / safe / scale / scale, d / safe / scale / scale / scale
    roots = _cubic_roots(b, g, d) * scale
    # A cubic term without a quartic one cannot occur (c₃ = 0 means D vanishes wherever W does not); then a parabola.
    parabola = jnp.where(c[1] > tiny, -c[0] / (2 * jnp.where(c[1] > tiny, c[1], 1.0)), 0.0)
    candidates = jnp.concatenate([jnp.zeros(1, c.dtype), jnp.where(a > tiny, roots, parabola)])
    values = candidates * (c[0] + candidates * (c[1] + candidates * (c[2] + candidates * c[3])))
    return candidates[jnp.nanargmin(jnp.where(jnp.isfinite(values), values, jnp.inf))]


def _cubic_roots(b: jax.Array, g: jax.Array, d: jax.Array) -> Float[Array, "3"]:
    """Real roots of x³ + b x² + g x + d; where there is one only, three times the same."""
    p, q = g - b * b / 3, 2 * b**3 / 27 - b * g / 3 + d  # y³ + p y + q = 0 with x = y − b / 3
    discriminant = (q / 2) ** 2 + (p / 3) ** 3
    # One real root: Cardano, the sign chosen so that nothing cancels.
    u = jnp.cbrt(-q / 2 - jnp.where(q < 0, -1.0, 1.0) * jnp.sqrt(jnp.maximum(discriminant, 0.0)))
    single = u - jnp.where(u == 0, 0.0, p / (3 * jnp.where(u == 0, 1.0, u)))
    # Three: Viète's cosines.
    radius = 2 * jnp.sqrt(jnp.maximum(-p / 3, 0.0))
    ratio = jnp.where(radius > 0, 3 * q / jnp.where(radius > 0, p * radius, 1.0), 0.0)
    angle = jnp.arccos(jnp.clip(ratio, -1.0, 1.0)) / 3
    triple = radius * jnp.cos(angle - 2 * jnp.pi / 3 * jnp.arange(3))
    x = jnp.where(discriminant > 0, single, triple) - b / 3
    for _ in range(3):  # the closed form is good to a few digits in float32; Newton restores the rest
        slope = 3 * x * x + 2 * b * x + g
        x = x - jnp.where(jnp.abs(slope) > 1e-6, (x**3 + b * x * x + g * x + d) / jnp.where(slope == 0, 1.0, slope), 0)
    return x
