"""Every component's two edits of the parameters, one for each sign, whichever kind the components are of."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from npeff_jax._types import PyTree
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.perturbation import (
    PAPER_THRESHOLD,
    DiagonalPerturbation,
    UnreachableKLError,
    component_directions,
    diagonal_edit,
)

SIGNS = (1.0, -1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class TopExamples:
    """The top examples of c components: what a diagonal edit is fitted on.

    Attributes:
        of: (c,) component numbers.
        examples: the top examples of each.
        labels: theirs, or None for the model's predictions.
    """

    of: Int[np.ndarray, "c"]
    examples: tuple[PyTree, ...]
    labels: tuple[np.ndarray, ...] | None


def low_rank_edits(
    model: Model,
    decomposition: Decomposition,
    components: Int[np.ndarray, "c"],
    norm: float,
    reject_below: float | None = PAPER_THRESHOLD,
) -> Iterator[PyTree]:
    """±norm · direction, component by component; zeros for dead ones. Everything is checked before the first."""
    alive = [j for j in components.tolist() if np.any(decomposition.pseudo_fishers[j])]
    directions = component_directions(model, decomposition, alive, reject_below)

    def edits() -> Iterator[PyTree]:
        for component in components.tolist():
            direction = next(directions) if component in alive else nothing(model)
            for sign in SIGNS:
                yield jax.tree.map(lambda leaf, scale=sign * norm: scale * leaf, direction)

    return edits()


def diagonal_edits(
    model: Model,
    decomposition: Decomposition,
    top: TopExamples,
    fisher: PyTree,
    settings: DiagonalPerturbation,
) -> Iterator[PyTree]:
    """Edits that lower, then raise the loss on a component's top examples, each to the KL range by itself.

    Where the range is out of reach (a model that is right and certain cannot be made much more so) the edit is zero:
    its ratio is then 0/0, and the other sign's is taken. A dead component's edits are both zero.
    """
    for position, component in enumerate(top.of.tolist()):
        for sign in SIGNS:
            if not np.any(decomposition.pseudo_fishers[component]):
                yield nothing(model)
                continue
            labels = None if top.labels is None else top.labels[position]
            options = {"fisher": fisher, "labels": labels, "sign": sign, "settings": settings}
            try:
                yield diagonal_edit(model, decomposition, component, top.examples[position], **options).change
            except UnreachableKLError:
                yield nothing(model)


def random_edits(model: Model, count: int, norm: float, seed: int) -> Iterator[PyTree]:
    """±norm times unit vectors that are uniform on the sphere of the explained parameters."""
    for i in range(count):
        vector = jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), (model.space.size,))
        for sign in SIGNS:
            yield model.space.unravel(sign * norm * vector / jnp.linalg.norm(vector))


def nothing(model: Model) -> PyTree:
    """The edit that changes nothing."""
    return model.space.unravel(jnp.zeros(model.space.size))
