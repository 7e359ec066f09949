"""What is explained: a pure function of one example, and its parameters."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax import _identity
from npeff_jax._checks import as_instance, is_own, listing
from npeff_jax._html import facts_html, table_html
from npeff_jax._parameters import Mask, ParameterSpace
from npeff_jax._types import Example, Examples, LogitsFn, PyTree
from npeff_jax.models._outputs import Categorical, Output

OutcomeFn = Callable[[PyTree, Example, jax.Array], jax.Array]
"""``(params, example, j) -> ()``, one logit."""

IntermediatesFn = Callable[[PyTree, Example], Mapping[str, jax.Array]]
"""``(params, example) -> {name: array}``, in the order of the computation."""


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model as the rest of the library sees it. Adapters for the frameworks only build this.

    A model is a pytree: its parameters are the leaves, everything else is static, so it can be an argument of a jitted
    function.

    Attributes:
        logits_fn: ``(params, example) -> (C,)``, pure, for one example without a batch axis.
        params: the parameters, any pytree of arrays. They are never changed.
        mask: which parameters to explain; every floating-point leaf by default.
        output: what the logits mean.
        intermediates_fn: optionally, named intermediate values of one example, for baselines on activations and for
            tracing.
        label_names: optionally, the names of the C classes.
        constants: optionally, what ``logits_fn`` depends on besides its arguments (batch statistics, settings), in any
            nest. It is only compared: PEFs of a model with other constants are those of another model.
        outcome_fn: optionally, logit j alone, for a function each of whose logits is a forward pass of its own (the
            log-probability of an answer of many tokens). Gradient rows then take a pass back per logit, where
            cotangents on all logits would take one through all of them.

    Raises:
        TypeError: ``logits_fn`` is no function of parameters and example, or ``output`` no output family.

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
    constants: Any = None
    outcome_fn: OutcomeFn | None = None

    def __post_init__(self) -> None:
        if _adapter(self.logits_fn) or not callable(self.logits_fn):
            raise TypeError(f"logits_fn is {_kind(self.logits_fn)}; {_remedy(self.logits_fn)}")
        object.__setattr__(self, "output", as_instance("output", self.output, Output))
        if isinstance(self.mask, Mapping) or not (
            self.mask is None or callable(self.mask) or hasattr(self.mask, "__iter__")
        ):
            raise TypeError(
                f"mask={self.mask!r} is a {type(self.mask).__name__}; expected a glob, a list of globs, a function "
                "(path, leaf) -> bool, or None"
            )
        if self.mask is not None and not isinstance(self.mask, str) and not callable(self.mask):
            object.__setattr__(self, "mask", tuple(self.mask))
        names = self.label_names
        if isinstance(names, str) or not (names is None or hasattr(names, "__iter__")):
            raise TypeError(f"label_names={names!r} is a {type(names).__name__}; pass a list, a name for each class")
        if self.label_names is not None:
            object.__setattr__(self, "label_names", tuple(str(name) for name in self.label_names))

    @functools.cached_property
    def space(self) -> ParameterSpace:
        """The explained parameters and how they line up as a vector of length m."""
        return ParameterSpace.of(self.params, self.mask)

    @property
    def fingerprint(self) -> str:
        """A digest of the parameters: paths, shapes, types, values. NumPy ones are read again, as they may change."""
        kept = self.__dict__.get("_fingerprint")
        if kept is None:
            kept = _identity.tree_digest(self.params)
            if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(self.params)):
                self.__dict__["_fingerprint"] = kept
        return kept

    @functools.cached_property
    def constants_digest(self) -> str | None:
        """A digest of ``constants``; None where they are not known."""
        return None if self.constants is None else _identity.constants_digest(self.constants)

    def identity(self, examples: Examples | None = None) -> _identity.Identity:
        """What tells this model from others: parameters, constants, output family, mask and, given examples, function.

        Args:
            examples: any that the model takes; only their shapes and types are used, to probe the function.
        """
        return _identity.model_identity(self, examples)

    def probe(self, example: Example) -> list[float] | None:
        """The logits of a fixed input shaped like ``example``: what shows that two functions differ."""
        arrays = jax.tree.leaves(jax.tree.map(np.asarray, example))
        key = ("probe", self.fingerprint, tuple((leaf.shape, str(leaf.dtype)) for leaf in arrays))
        if self.__dict__.get("_probe", (None, None))[0] != key:
            self.__dict__["_probe"] = key, _identity.probe(self, example)
        return self.__dict__["_probe"][1]

    @functools.cached_property
    def compiled(self) -> LogitsFn:
        """``logits_fn``, jitted once for this model."""
        return jax.jit(self.logits_fn)

    @functools.cached_property
    def _programs(self) -> dict[Any, Callable[..., Any]]:
        return {}

    def program(self, function: Callable[..., Any], *static: Any) -> Callable[..., Any]:
        """Return ``function(*arguments, *static)`` as a compiled function of its arguments, made once for this model.

        The model keeps it, and lets it go with itself. A cache of `jax.jit` that is keyed on a function of a user's
        grows by a program for each fresh lambda.

        Args:
            function: pure.
            *static: its last arguments, hashable: functions, choices, numbers.
        """
        key = (function, static)
        if key not in self._programs:
            self._programs[key] = jax.jit(lambda *arguments: function(*arguments, *static))
        return self._programs[key]

    def __repr__(self) -> str:
        try:
            size = self.space.size
        except (TypeError, ValueError) as error:
            return f"Model without explained parameters ({error})"
        return f"Model of {size:,} explained parameters, {type(self.output).__name__} outputs"

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

    def selected_logits(self, selected: tuple[Any, ...], params: PyTree, example: Example) -> jax.Array:
        """The logits as a function of the explained leaves alone, each once: what per-example gradients are taken of.

        ``params`` supplies the rest; it is an argument, not a closure, so that it is never compiled in as a constant.
        """
        return self.logits_fn(self.space.join(params, selected), example)

    def selected_outcome(self, selected: tuple[Any, ...], params: PyTree, example: Example, j: jax.Array) -> jax.Array:
        """Logit j alone as a function of the explained leaves, where there is an ``outcome_fn``."""
        assert self.outcome_fn is not None
        return self.outcome_fn(self.space.join(params, selected), example, j)

    def n_classes(self, example: Example) -> int:
        """Return C, found without running the model.

        Raises:
            ValueError: ``logits_fn`` fails, or the logits are not one vector of floating-point numbers of a length that
                the output family allows.
        """
        try:
            shape = jax.eval_shape(self.logits_fn, self.params, example)
        except Exception as error:
            if is_own(error):
                raise
            raise ValueError(
                f"logits_fn(params, example) raised {type(error).__name__} for one example, {_shapes(example)} (no "
                f"batch axis): {_first_line(error)}; {_STACK if isinstance(example, list) else _EXPECTED}"
            ) from error
        if not hasattr(shape, "shape") or len(shape.shape) != 1:
            got = getattr(shape, "shape", type(shape).__name__)
            remedy = "If the model wants a batch, add it inside: lambda params, x: apply(params, x[None])[0]"
            if isinstance(got, tuple) and len(got) == 2 and got[0] > 1:
                remedy = (
                    "A prediction per token or pixel wants an example for each: (input, position), and "
                    "lambda params, x: apply(params, x[0])[x[1]]"
                )
            elif got == ():
                remedy = "A single number is a vector of one, value[None], with output=Bernoulli() or Gaussian(scale)"
            raise ValueError(f"logits_fn returned {got} for one example; expected one axis, (C,). {remedy}")
        if not jnp.issubdtype(shape.dtype, jnp.floating) or shape.shape[0] < self.output.minimum_size:
            single = (
                "; a single logit of yes or no is output=Bernoulli(), a number to predict output=Gaussian(scale)"
                if shape.shape[0] == 1
                else ""
            )
            raise ValueError(
                f"logits_fn returned {shape.shape[0]} values of {shape.dtype}; {type(self.output).__name__} expects "
                f"at least {self.output.minimum_size} of a floating-point type{single}"
            )
        names = self.label_names or ()
        if names and isinstance(self.output, Categorical) and len(names) != shape.shape[0]:
            raise ValueError(
                f"label_names has {len(names)} names ({listing(names, 4)}), the model {shape.shape[0]} classes; pass "
                "a name for each, in the order of the logits"
            )
        return shape.shape[0]

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, PyTree], ...], tuple[Any, ...]]:
        """The parameters, and everything else as static data."""
        try:
            space = self.space
        except (TypeError, ValueError):  # of a structure that JAX made up: it has no parameters to line up
            space = None
        static = (
            self.logits_fn,
            self.mask,
            self.output,
            self.intermediates_fn,
            self.label_names,
            self.outcome_fn,
            space,
        )
        return ((jax.tree_util.GetAttrKey("params"), self.params),), (*static, _Constants(self))

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, ...], children: tuple[PyTree, ...]) -> "Model":
        """A model of other leaves in the same places; what shared an array still counts as one."""
        *fields, space, constants = static
        made = object.__new__(cls)
        names = ("logits_fn", "mask", "output", "intermediates_fn", "label_names", "outcome_fn")
        made.__dict__.update(zip(names, fields), params=children[0], constants=constants.value)
        if space is not None:
            made.__dict__["space"] = space
        return made


jax.tree_util.register_pytree_with_keys_class(Model)


class _Constants:
    """Constants as static data: compared by digest, since what they are need not be hashable."""

    def __init__(self, model: Model) -> None:
        self.value, self._digest = model.constants, model.constants_digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constants) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)


def check_model(model: Any) -> Model:
    """Return ``model``, if it is one.

    Raises:
        TypeError: it is something else; says which adapter makes a `Model` of it.
    """
    if isinstance(model, Model):
        return model
    raise TypeError(f"model is {_kind(model)}, not a npeff_jax.Model; {_remedy(model)}")


ADAPTERS = {
    "transformers": "npeff_jax.models.from_huggingface(directory)",
    "torch": "npeff_jax.models.from_torch(module, ...), or from_huggingface for a checkpoint",
    "flax.linen": "npeff_jax.models.from_linen(module, variables)",
    "flax.nnx": "npeff_jax.models.from_nnx(module)",
    "equinox": "npeff_jax.models.from_equinox(module)",
    "haiku": "npeff_jax.models.from_haiku(transformed, params)",
    "tracr": "npeff_jax.models.from_tracr(compiled)",
}
"""What makes a `Model` of an object whose class descends from one of a framework."""


def check_module(module: Any, base: type, adapter: str) -> None:
    """Raise unless ``module`` is an instance of a framework's module class.

    Raises:
        TypeError: it is a class, or something else; says which adapter takes it.
    """
    if isinstance(module, base):
        return
    name = f"{base.__module__.split('.')[0]}'s {base.__name__}"
    if isinstance(module, type) and issubclass(module, base):
        raise TypeError(f"module is {_kind(module)}; {adapter} takes an instance of it, {module.__qualname__}(...)")
    other = _adapter(module)
    remedy = f"make a model of it with {other}" if other else f"{adapter} takes {name}"
    raise TypeError(f"module is {_kind(module)}, not {name}; {remedy}")


def _adapter(value: Any) -> str | None:
    """The adapter for an object or class of a framework; None for anything else."""
    kinds = value.__mro__ if isinstance(value, type) else type(value).__mro__
    origins = [kind.__module__ for kind in kinds if kind is not object]
    found = [remedy for name, remedy in ADAPTERS.items() if any(_within(origin, name) for origin in origins)]
    # What a framework wraps around a function (equinox.filter_jit) is a function.
    return found[0] if found and not kinds[0].__module__.startswith("equinox._") else None


def _within(origin: str, name: str) -> bool:
    return origin == name or origin.startswith(f"{name}.")


def _remedy(value: Any) -> str:
    adapter = _adapter(value)
    if adapter:
        return f"make a model of it with {adapter}"
    if callable(value):
        return "pass npeff_jax.Model(logits_fn, params) with logits_fn(params, example) -> (C,)"
    return "expected a function (params, example) -> (C,), as in npeff_jax.Model(logits_fn, params)"


def _shapes(example: Any) -> str:
    """Return shapes and types of an example's leaves, for a message."""
    leaves = [
        f"{jax.tree_util.keystr(path) or 'an array'} {np.shape(leaf)} {jnp.result_type(leaf)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(example)
    ]
    kind = type(example).__name__
    return listing(leaves, 4) if hasattr(example, "shape") else f"a {kind} of {listing(leaves, 2)}"


_STACK = "stack the examples of a list: jax.tree.map(lambda *x: np.stack(x), *examples)"
_EXPECTED = "expected the logits (C,) of this example, computed with jax.numpy"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no message")[:300]


def _kind(value: Any) -> str:
    name = value.__qualname__ if isinstance(value, type) else type(value).__qualname__
    return f"the class {name}" if isinstance(value, type) else f"of type {name}"
