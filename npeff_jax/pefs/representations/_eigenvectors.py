"""Eigenvectors of an example's small Gram matrix, on the host and inside a compiled program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

MOST_ROTATED = 32
"""Number of rows up to which Jacobi rotations are used in a compiled program: a sweep has c − 1 rounds of kernels."""

SWEEPS = 10
"""Sweeps over all pairs. Convergence is quadratic; 6 to 8 sweeps reach rounding for up to 32 rows."""


def principal_vectors(gram: Any, xp: Any) -> Any:
    """Return orthonormal eigenvectors as rows, of the largest eigenvalue first; the largest entry of each is positive.

    Args:
        gram: (c, c), symmetric.
        xp: ``numpy``, which computes in the dtype of ``gram``, or ``jax.numpy``.
    """
    unit = xp.trace(gram)
    gram = gram / xp.where(unit > 0, unit, xp.ones_like(unit))
    by_library = xp is np or gram.shape[0] > MOST_ROTATED
    vectors = xp.linalg.eigh(gram)[1][:, ::-1].T if by_library else by_rotations(gram)
    largest = xp.take_along_axis(vectors, xp.argmax(xp.abs(vectors), axis=1)[:, None], axis=1)
    return xp.where(largest < 0, -vectors, vectors)  # sign independent of the eigensolver


def by_rotations(gram: Float[Array, "c c"]) -> Float[Array, "c c"]:
    """Return eigenvectors as rows, largest eigenvalue first, by Jacobi rotations of disjoint pairs.

    Library eigensolvers synchronise with the host, and batches of them deadlock on CPUs. Rotation angles depend only on
    the two rows involved, which keeps small eigenvalues accurate for rows of very different norms.
    """
    c = gram.shape[0]
    if c == 1:
        return jnp.ones((1, 1), gram.dtype)
    rounds = jnp.asarray(_rounds(c))

    def one_round(step: jax.Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        S, V = state
        partner = rounds[step % len(rounds)]
        first = jnp.arange(c) < partner
        a, b, d = jnp.diagonal(S), jnp.diagonal(S)[partner], S[jnp.arange(c), partner]
        d = jnp.where(first, d, d[partner])  # the same angle for both, although rounding makes S asymmetric
        low, high = jnp.where(first, a, b), jnp.where(first, b, a)
        # 1e-8: below the rounding of sqrt(a b) in float32
        still = (jnp.abs(d) <= 1e-8 * jnp.sqrt(jnp.abs(a)) * jnp.sqrt(jnp.abs(b))) | (partner == jnp.arange(c))
        tau = (high - low) / jnp.where(still, 1.0, 2 * d)
        t = jnp.where(tau >= 0, 1.0, -1.0) / (jnp.abs(tau) + jnp.sqrt(1 + tau * tau))
        t = jnp.where(still, 0.0, t)
        cosine = 1 / jnp.sqrt(1 + t * t)
        sine = jnp.where(first, -t, t) * cosine
        S = cosine[:, None] * S + sine[:, None] * S[partner]
        S = cosine[None] * S + sine[None] * S[:, partner]
        return S, cosine[:, None] * V + sine[:, None] * V[partner]

    S, V = jax.lax.fori_loop(0, SWEEPS * len(rounds), one_round, (gram, jnp.eye(c, dtype=gram.dtype)))
    V = V[jnp.argsort(-jnp.diagonal(S), stable=True)]
    # One Newton step towards the nearest orthogonal matrix squares the error of 1e-6 left by rounding.
    VV = jnp.matmul(V, V.T, precision="highest")
    return jnp.matmul(1.5 * jnp.eye(c, dtype=V.dtype) - 0.5 * VV, V, precision="highest")


def _rounds(c: int) -> Int[np.ndarray, "rounds c"]:
    """Return the partner of each row per round, such that every pair meets once (a round-robin tournament)."""
    n = c + c % 2
    circle, found = list(range(n)), []
    for _ in range(n - 1):
        partner = np.arange(c)
        for i in range(n // 2):
            p, q = circle[i], circle[n - 1 - i]
            if p < c and q < c:  # odd c: one row rests
                partner[p], partner[q] = q, p
        found.append(partner)
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return np.array(found)
