"""The exact minimiser of a quartic: the step length that replaces a learning rate."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

GRID = np.linspace(-2, 2, 4097, dtype=np.float32)
"""Where the scaled quartic is evaluated first. Its roots are within; between two points it changes by 1e-7 at most next
to a minimum, so what is picked is the lowest valley, or one as low to float32."""

NEWTON = 3
"""From 1/2048 away, digits double: 3, 7, 14."""


def minimize_quartic(c: Float[Array, "4"]) -> Float[Array, ""]:
    """The t that minimises c₀ t + c₁ t² + c₂ t³ + c₃ t⁴, with c₃ ≥ 0. Where the quartic is flat, 0.

    The best of many points, polished by Newton's method on the derivative. (Roots in closed form lose their digits in
    float32, and take longer to compile than the rest of a step.)
    """
    tiny = jnp.finfo(c.dtype).tiny
    a, b, g, d = 4 * c[3], 3 * c[2], 2 * c[1], c[0]
    safe = jnp.where(a > tiny, a, 1.0)
    b, g, d = b / safe, g / safe, d / safe
    # t = scale x: then x³ + b x² + g x + d = 0 has coefficients of at most 1, so its roots lie within [-2, 2].
    scale = jnp.maximum(jnp.maximum(jnp.abs(b), jnp.maximum(jnp.sqrt(jnp.abs(g)), jnp.cbrt(jnp.abs(d)))), tiny)
    b, g, d = b / scale, g / scale / scale, d / scale / scale / scale
    x = jnp.asarray(GRID)
    x = x[jnp.argmin(x * (d + x * (g / 2 + x * (b / 3 + x / 4))))]
    for _ in range(NEWTON):
        slope = g + x * (2 * b + 3 * x)
        x = x - jnp.where(slope > 1e-6, (d + x * (g + x * (b + x))) / jnp.where(slope > 1e-6, slope, 1.0), 0.0)
    # A cubic term without a quartic one cannot occur (c₃ = 0 means D vanishes wherever W does not); then a parabola.
    parabola = jnp.where(c[1] > tiny, -c[0] / (2 * jnp.where(c[1] > tiny, c[1], 1.0)), 0.0)
    t = jnp.where(a > tiny, x * scale, parabola)
    return jnp.where(t * (c[0] + t * (c[1] + t * (c[2] + t * c[3]))) < 0, t, 0.0)
