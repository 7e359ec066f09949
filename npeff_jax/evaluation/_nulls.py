"""Null distributions of selectivity: other components' moves, random directions, random examples."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from npeff_jax._checks import check_integer, normalise
from npeff_jax._types import PyTree
from npeff_jax.models import Model

SIGNS = (1, -1)


@dataclasses.dataclass(frozen=True)
class Nulls:
    """Sizes of the null distributions that components are compared with.

    Attributes:
        n_random_examples: number of random examples to compare top examples with, or all examples if there are fewer.
        n_random_directions: number of random directions of equal norm (the median norm if norms differ).
        n_other_components: number of other components, drawn at random, whose moves are measured on a component's top
            examples; None for all. With a number, each move is measured only on its own top examples, those of as many
            other components, and the random examples, so the cost is linear instead of quadratic in the number of
            components.
    """

    n_random_examples: int = 10_000
    n_random_directions: int = 8
    n_other_components: int | None = None

    def __post_init__(self) -> None:
        normalise(
            self,
            n_random_examples=check_integer("n_random_examples", self.n_random_examples),
            n_random_directions=check_integer("n_random_directions", self.n_random_directions, 0),
        )
        if self.n_other_components is not None:
            normalise(self, n_other_components=check_integer("n_other_components", self.n_other_components))

    def others(self, c: int, rng: np.random.Generator) -> Bool[np.ndarray, "c c"]:
        """Choose the pairs [j, k] for which the move of component k is measured on the top examples of component j.

        Each component is paired with those that follow it in a random circular order, so that every move is measured on
        equally many components, which balances the forward passes.
        """
        n_others = self.n_other_components
        if n_others is None or n_others >= c - 1:
            return np.ones((c, c), bool)
        order = rng.permutation(c)
        tried = np.eye(c, dtype=bool)
        for step in range(1, n_others + 1):
            tried[order, np.roll(order, -step)] = True
        return tried


def random_moves(model: Model, count: int, norm: float, seed: int) -> Iterator[PyTree]:
    """Yield ±norm times random unit vectors, uniform on the sphere of the explained parameters."""
    for i in range(count):
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), i)  # independent of JAX's default
        vector = jax.random.normal(key, (model.space.size,), jnp.float32)
        for sign in SIGNS:
            yield model.space.unravel(sign * norm * vector / jnp.linalg.norm(vector))
