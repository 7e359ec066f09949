"""Where a perturbation along a component enters a model, and how it reaches the output: to first order, by `jax.jvp`.

Moving the parameters by t·δ changes every intermediate value h by t·∂h[δ] + O(t²). The derivative is linear in δ, so
that what the layers' parameters contribute to a change of the logits adds up: δ restricted to one layer enters there
alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from npeff_jax._html import facts_html, spark_html, table_html
from npeff_jax._types import Example, PyTree
from npeff_jax.models import Model, check_model
from npeff_jax.perturbation import check_direction


@dataclasses.dataclass(frozen=True, eq=False)
class PerturbationTrace:
    """The first-order course of a perturbation through one example's computation.

    Attributes:
        stages: names of the intermediate values, in the order of the computation.
        change: for each stage and position of it, ‖∂h[δ]‖ / ‖h‖ over the features of that position. Features are the
            last axis; positions are the others, flattened (one position for a vector).
        groups: names of the groups of parameters.
        logits: (groups, C), what δ restricted to a group changes of each logit, per unit of t. Rows add up to ∂z[δ].
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
    """Traces perturbations of one model; compiled once for all directions and for all examples of one shape.

    Examples:
        >>> trace = Tracer(model)(component_direction(model, decomposition, 0), example)
        >>> trace.logits.sum(axis=0).shape  # what the whole perturbation does to the logits, per unit of length
        (3,)
    """

    def __init__(self, model: Model, groups: Mapping[str, Sequence[str]] | None = None) -> None:
        """Prepare tracing.

        Args:
            model: one that exposes intermediates (``Model.intermediates_fn``).
            groups: parameter names by group, such as one for each layer; every parameter array is its own by default.

        Raises:
            ValueError: the model exposes no intermediates, or the groups are no partition of the explained parameters.
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
        self._run = jax.jit(self._trace)

    def __call__(self, direction: PyTree, example: Example) -> PerturbationTrace:
        """The trace of a perturbation along ``direction``, shaped like the parameters, for one example."""
        check_direction(self._model, direction)
        self._model.n_classes(example)  # raises where it is no example, or a batch of them
        values, changes, logits = self._run(self._model.params, direction, example)
        relative = []
        for value, change in zip(values.values(), changes.values(), strict=True):
            size = np.linalg.norm(_by_position(value), axis=1)
            moved = np.linalg.norm(_by_position(change), axis=1)
            relative.append(np.divide(moved, size, out=np.zeros_like(moved), where=size > 0))
        return PerturbationTrace(tuple(values), tuple(relative), self._groups, np.asarray(logits))

    def _trace(self, params: PyTree, direction: PyTree, example: Example) -> tuple[Any, Any, jax.Array]:
        space, intermediates_fn = self._model.space, self._model.intermediates_fn
        assert intermediates_fn is not None
        here, along = space.select(params), space.select(direction)
        values, changes = jax.jvp(lambda s: dict(intermediates_fn(space.join(params, s), example)), (here,), (along,))

        def of_group(g: jax.Array) -> jax.Array:
            own = tuple(jnp.where(g == k, leaf, 0) for k, leaf in zip(self._group_of, along, strict=True))
            return jax.jvp(lambda s: self._model.selected_logits(s, params, example), (here,), (own,))[1]

        # One group after the other: the memory of one forward pass, however many layers there are.
        return values, changes, jax.lax.map(of_group, jnp.arange(len(self._groups)))


def _by_position(array: Any) -> Float[np.ndarray, "positions features"]:
    array = np.asarray(array, np.float64)
    return array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
