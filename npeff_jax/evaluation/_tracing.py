"""First-order effect of a perturbation along a component on the intermediate values and logits, by `jax.jvp`.

Moving the parameters by t·δ changes every intermediate value h by t·∂h[δ] + O(t²). The derivative is linear in δ, so
the change of the logits is the sum of the contributions of δ restricted to each layer's parameters.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from npeff_jax._html import facts_html, spark_html, table_html
from npeff_jax._types import Example, Examples, PyTree
from npeff_jax.models import Model, check_model
from npeff_jax.perturbation import check_direction


@dataclasses.dataclass(frozen=True, eq=False)
class PerturbationTrace:
    """First-order changes of the intermediate values and logits of one example.

    Attributes:
        stages: names of the intermediate values, in order of computation.
        change: per stage and position, ‖∂h[δ]‖ / ‖h‖ over the features of that position. Features are the last axis;
            positions are the other axes, flattened (one position for a vector).
        groups: names of the groups of parameters.
        logits: (groups, C), change of each logit due to δ restricted to a group, per unit of t. The sum over groups is
            ∂z[δ].
    """

    stages: tuple[str, ...]
    change: tuple[Float[np.ndarray, "_"], ...]
    groups: tuple[str, ...]
    logits: Float[np.ndarray, "groups C"]

    def _repr_html_(self) -> str:
        total = self.logits.sum(axis=0)
        facts = [("change of the logits, per unit", ", ".join(f"{change:+.3g}" for change in total))]
        heads = ("parameters", *(f"logit {c}" for c in range(len(total))))
        order = np.argsort(-np.linalg.norm(self.logits, axis=1), kind="stable")
        rows = [(self.groups[g], *(f"{change:+.3g}" for change in self.logits[g])) for g in order]
        course = spark_html([change.max(initial=0) for change in self.change], "largest relative change, by stage")
        return facts_html("A perturbation's course to first order", facts, table_html(heads, rows), course)


class Tracer:
    """Compute traces of perturbations of a model; compiled once for all directions and examples of one shape.

    Examples:
        >>> trace = Tracer(model)(component_direction(model, decomposition, 0), example)
        >>> trace.logits.sum(axis=0).shape  # what the whole perturbation does to the logits, per unit of length
        (3,)
    """

    def __init__(self, model: Model, groups: Mapping[str, Sequence[str]] | None = None) -> None:
        """Prepare tracing.

        Args:
            model: a model with ``intermediates_fn``.
            groups: parameter names by group, such as one group per layer; by default one group per parameter array.

        Raises:
            ValueError: the model exposes no intermediates, or the groups do not partition the explained parameters.
        """
        check_model(model)
        if model.intermediates_fn is None:
            raise ValueError(
                "this model exposes no intermediate values; build it with intermediates_fn=(params, example) -> "
                "{name: array}"
            )
        if groups is not None and not isinstance(groups, Mapping):
            raise TypeError(f"groups is a {type(groups).__name__}; expected {{group: names of its parameters}}")
        names = [p.name for p in model.space.layout.parameters]
        groups = {name: (name,) for name in names} if groups is None else groups
        grouped = [name for members in groups.values() for name in members]
        if sorted(grouped) != sorted(names):
            astray = sorted(set(grouped) ^ set(names))[:3] or [name for name in names if grouped.count(name) > 1][:3]
            raise ValueError(
                f"groups are no partition of the model's {len(names)} explained parameters (look at "
                f"{', '.join(astray)}); each must be in exactly one"
            )
        self._model, self._groups = model, tuple(groups)
        group_of = {name: g for g, members in enumerate(groups.values()) for name in members}
        self._group_of = tuple(group_of[name] for name in names)
        self._run = jax.jit(jax.vmap(self._trace, (None, 0, 0)))

    def __call__(self, direction: PyTree, example: Example) -> PerturbationTrace:
        """Return the trace of a perturbation along ``direction``, shaped like the parameters, for one example."""
        check_direction(self._model, direction)
        self._model.n_classes(example)  # raises if it is not an example, or a batch of them
        one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], (direction, example))
        return self.pairs(*one)[0]

    def pairs(self, directions: PyTree, examples: Examples) -> list[PerturbationTrace]:
        """Return the traces of k directions, each for its own example, in one call.

        Args:
            directions: k directions as a pytree shaped like the parameters, with a leading axis.
            examples: k examples.
        """
        values, changes, logits = jax.device_get(self._run(self._model.params, directions, examples))
        made = []
        for i in range(len(logits)):
            relative = []
            for value, change in zip(values.values(), changes.values(), strict=True):
                size = np.linalg.norm(_by_position(value[i]), axis=1)
                moved = np.linalg.norm(_by_position(change[i]), axis=1)
                relative.append(np.divide(moved, size, out=np.zeros_like(moved), where=size > 0))
            made.append(PerturbationTrace(tuple(values), tuple(relative), self._groups, logits[i]))
        return made

    def _trace(self, params: PyTree, direction: PyTree, example: Example) -> tuple[Any, Any, jax.Array]:
        space, intermediates_fn = self._model.space, self._model.intermediates_fn
        assert intermediates_fn is not None
        here, along = space.select(params), space.select(direction)
        values, changes = jax.jvp(lambda s: dict(intermediates_fn(space.join(params, s), example)), (here,), (along,))

        def of_group(g: jax.Array) -> jax.Array:
            own = tuple(jnp.where(g == k, leaf, 0) for k, leaf in zip(self._group_of, along, strict=True))
            return jax.jvp(lambda s: self._model.selected_logits(s, params, example), (here,), (own,))[1]

        # Loop over groups, which needs the memory of one forward pass whatever the number of layers.
        return values, changes, jax.lax.map(of_group, jnp.arange(len(self._groups)))


def _by_position(array: Any) -> Float[np.ndarray, "positions features"]:
    array = np.asarray(array, np.float64)
    return array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
