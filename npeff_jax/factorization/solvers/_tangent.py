"""Constrained directions for G: unit vectors (for a penalty on angles), or orthonormal vectors (Stiefel manifold)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from npeff_jax._types import Coefficients, ComponentGram, RowProducts
from npeff_jax.factorization._problem import Problem
from npeff_jax.factorization.row_spaces import Vectors

FRACTIONS = (1.0, 0.5, 0.25, 0.125, 0.03, 0.01, 0.0)
"""Step lengths to try, relative to the best one without retraction. With zero among them, the loss never increases."""


class Line(NamedTuple):
    """A direction D and its products."""

    D: Vectors
    AD: Float[Array, "N d"]
    GD: Float[Array, "r d"]
    DD: Float[Array, "d d"]


def project(line: Line, S: ComponentGram, G: Vectors, AG: RowProducts, GG: ComponentGram, n_frozen: int = 0) -> Line:
    """Return the direction D − S G of the free components, with its products.

    S = Diag(D Gᵀ) removes changes of length of unit vectors; S = sym(D Gᵀ) projects onto the tangent space of
    orthonormal vectors.
    """
    f = n_frozen
    D, AD, GD, DD = line
    DD = DD - S @ GD[f:] - GD[f:].T @ S + S @ GG[f:, f:] @ S
    return Line(D - S @ G[f:], AD - AG[:, f:] @ S, GD - GG[:, f:] @ S, DD)


def retract(
    problem: Problem,
    W: Coefficients,
    G: Vectors,
    AG: RowProducts,
    GG: ComponentGram,
    line: Line,
    step: Float[Array, ""],
) -> tuple[Vectors, RowProducts]:
    """Return orthonormal G near G + step D, and A Gᵀ.

    After the polar retraction G ← (Ĝ Ĝᵀ)^(-1/2) Ĝ the loss is not a quartic in the step length, but it still follows
    from known inner products, so trying several step lengths needs no product with A.
    """
    D, AD, GD, DD = line

    def products(t: Float[Array, ""]) -> tuple[RowProducts, ComponentGram]:
        root = _inverse_root(GG + t * (GD + GD.T) + t * t * DD)
        return (AG + t * AD) @ root, root

    def loss(t: Float[Array, ""]) -> Float[Array, ""]:
        return -jnp.sum(W * problem.sum_over_rows(products(t)[0] ** 2))  # other terms do not depend on t

    steps = step * jnp.asarray(FRACTIONS, step.dtype)
    t = steps[jnp.argmin(jax.lax.map(loss, steps))]
    AG, root = products(t)
    return root @ (G + t * D), AG


def _inverse_root(X: ComponentGram) -> ComponentGram:
    """Return X^(-1/2), with eigenvalues bounded from below so that the result is finite for parallel vectors."""
    values, vectors = jnp.linalg.eigh(X)
    return (vectors / jnp.sqrt(jnp.maximum(values, 1e-6 * values[-1]))[None]) @ vectors.T
