"""Directions that stay on a constraint: unit vectors, for a penalty on their angles, or orthonormal ones (Stiefel)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from npeff_jax._types import Coefficients, ComponentGram, RowProducts
from npeff_jax.factorization._problem import Problem
from npeff_jax.factorization.row_spaces import Vectors

FRACTIONS = (1.0, 0.5, 0.25, 0.125, 0.03, 0.01, 0.0)
"""Of the step that is best without retraction. Zero is among them: a step never ascends."""


class Line(NamedTuple):
    """A direction and its products."""

    D: Vectors
    AD: Float[Array, "N d"]
    GD: Float[Array, "r d"]
    DD: Float[Array, "d d"]


def project(line: Line, S: ComponentGram, G: Vectors, AG: RowProducts, GG: ComponentGram, n_frozen: int = 0) -> Line:
    """Return D − S G over the components that are free. S = Diag(D Gᵀ) takes the change of length off unit vectors,
    S = sym(D Gᵀ) leaves the tangent space of orthonormal ones.
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
    """Return orthonormal G and A Gᵀ near G + step D.

    After the polar retraction G ← (Ĝ Ĝᵀ)^(-1/2) Ĝ the loss is no quartic any more; but it still follows from inner
    products at hand, so the best of several step lengths costs no product with A.
    """
    D, AD, GD, DD = line

    def products(t: Float[Array, ""]) -> tuple[RowProducts, ComponentGram]:
        root = _inverse_root(GG + t * (GD + GD.T) + t * t * DD)
        return (AG + t * AD) @ root, root

    def loss(t: Float[Array, ""]) -> Float[Array, ""]:
        return -jnp.sum(W * problem.sum_over_rows(products(t)[0] ** 2))  # the rest does not depend on t

    steps = step * jnp.asarray(FRACTIONS, step.dtype)
    t = steps[jnp.argmin(jax.lax.map(loss, steps))]
    AG, root = products(t)
    return root @ (G + t * D), AG


def _inverse_root(X: ComponentGram) -> ComponentGram:
    """Return X^(-1/2). The floor keeps parallel vectors finite; they part as soon as the direction parts them."""
    values, vectors = jnp.linalg.eigh(X)
    return (vectors / jnp.sqrt(jnp.maximum(values, 1e-6 * values[-1]))[None]) @ vectors.T
