"""What components are held against: other components' moves, random directions, random examples."""

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
    """What components are held against.

    Attributes:
        n_random_examples: random examples to compare a component's top ones with, or all there are if fewer.
        n_random_directions: random directions of equal norm (the median one where norms differ), the second null.
        n_other_components: how many other components' moves are tried on a component's top examples, drawn at random;
            all if None. With a number, a move is measured on its own top examples, those of so many others and the
            random examples alone: the cost then grows with the number of components instead of its square.
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
        """Whether the move of component k is tried on the top examples of component j, at [j, k].

        Each is held against equally many others and tried by equally many, so that no pass is fuller than the rest:
        those that follow it in a random circular order.
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
    """±norm times unit vectors that are uniform on the sphere of the explained parameters."""
    for i in range(count):
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), i)  # the same under any default
        vector = jax.random.normal(key, (model.space.size,), jnp.float32)
        for sign in SIGNS:
            yield model.space.unravel(sign * norm * vector / jnp.linalg.norm(vector))
