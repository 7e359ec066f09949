"""What is explained: a pure function of one example, and its parameters."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from npeff_jax._html import facts_html, table_html
from npeff_jax._parameters import Mask, ParameterSpace, fingerprint
from npeff_jax._types import Example, LogitsFn, PyTree
from npeff_jax.models._outputs import Categorical, Output

IntermediatesFn = Callable[[PyTree, Example], Mapping[str, jax.Array]]
"""``(params, example) -> {name: array}``, in the order of the computation."""


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model as the rest of the library sees it. Adapters for the frameworks only build this.

    Attributes:
        logits_fn: ``(params, example) -> (C,)``, pure, for one example without a batch axis.
        params: the parameters, any pytree of arrays. They are never changed.
        mask: which parameters to explain; every floating-point leaf by default.
        output: what the logits mean.
        intermediates_fn: optionally, named intermediate values of one example, for baselines on activations and for
            tracing.
        label_names: optionally, the names of the C classes.

    Examples:
        >>> model = Model(lambda params, x: x @ params["w"], {"w": jnp.ones((4, 3))})
        >>> model.space.size
        12
    """

    logits_fn: LogitsFn
    params: PyTree
    _: dataclasses.KW_ONLY
    mask: Mask = None
    output: Output = dataclasses.field(default_factory=Categorical)
    intermediates_fn: IntermediatesFn | None = None
    label_names: tuple[str, ...] | None = None

    @functools.cached_property
    def space(self) -> ParameterSpace:
        """The explained parameters and how they line up as a vector of length m."""
        return ParameterSpace.of(self.params, self.mask)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the parameters: paths, shapes, types and values."""
        return fingerprint(self.params)

    def __repr__(self) -> str:
        return f"Model of {self.space.size:,} explained parameters, {type(self.output).__name__} outputs"

    def _repr_html_(self) -> str:
        arrays = self.space.layout.parameters
        facts: list[tuple[str, Any]] = [
            ("parameters explained", f"{self.space.size:,} in {len(arrays)} arrays"),
            ("output", type(self.output).__name__),
            ("intermediate values", "exposed" if self.intermediates_fn is not None else "not exposed"),
        ]
        if self.label_names is not None:
            facts.append(("classes", ", ".join(self.label_names[:10]) + ("…" if len(self.label_names) > 10 else "")))
        rows = [(p.name, " × ".join(map(str, p.shape))) for p in arrays]
        return facts_html("Model", facts, table_html(("parameter", "shape"), rows))

    def selected_logits(self, selected: tuple[jax.Array, ...], params: PyTree, example: Example) -> jax.Array:
        """The logits as a function of the explained leaves alone, each once: what per-example gradients are taken of.

        ``params`` supplies the rest; it is an argument, not a closure, so that it is never compiled in as a constant.
        """
        return self.logits_fn(self.space.join(params, selected), example)

    def n_classes(self, example: Example) -> int:
        """C, found without running the model.

        Raises:
            ValueError: the logits are not one vector of floating-point numbers of a length that the output family
                allows.
        """
        shape = jax.eval_shape(self.logits_fn, self.params, example)
        if not hasattr(shape, "shape") or len(shape.shape) != 1:
            got = getattr(shape, "shape", type(shape).__name__)
            raise ValueError(
                f"logits_fn returned {got} for one example; expected one axis, (C,). If the model wants a batch, "
                "add it inside: lambda params, x: apply(params, x[None])[0]"
            )
        if not jnp.issubdtype(shape.dtype, jnp.floating) or shape.shape[0] < self.output.minimum_size:
            raise ValueError(
                f"logits_fn returned {shape.shape[0]} values of {shape.dtype}; {type(self.output).__name__} expects "
                f"at least {self.output.minimum_size} of a floating-point type"
            )
        return shape.shape[0]
