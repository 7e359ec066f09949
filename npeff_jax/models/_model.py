"""`Model`: a pure function of one example, and its parameters."""

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
"""``(params, example) -> {name: array}``, in order of computation."""


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model to explain: a pure function of parameters and one example. Adapters of frameworks build this class.

    A model is a pytree: its parameters are the leaves and everything else is static, so it can be an argument of a
    jitted function.

    Attributes:
        logits_fn: ``(params, example) -> (C,)``, pure, for one example without a batch axis.
        params: the parameters, any pytree of arrays. They are never changed.
        mask: which parameters to explain; by default every floating-point leaf.
        output: output family, which defines the distribution given by the logits.
        intermediates_fn: optional function for named intermediate values of one example, for baselines on activations
            and for tracing.
        label_names: optional names of the C classes.
        constants: optional dependencies of ``logits_fn`` besides its arguments (batch statistics, settings), in any
            nested structure. They only serve to identify the model: with other constants it is a different model.
        outcome_fn: optional function for logit j alone, if each logit takes a forward pass of its own (such as the
            log-probability of an answer). A gradient row then takes a backward pass through one logit instead of all.

    Raises:
        TypeError: ``logits_fn`` is not a function of parameters and example, or ``output`` is not an output family.

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
        """The explained parameters, and their layout as a vector of length m."""
        return ParameterSpace.of(self.params, self.mask)

    @property
    def fingerprint(self) -> str:
        """Digest of the parameters: paths, shapes, dtypes, values. NumPy arrays are read again, as they may change."""
        kept = self.__dict__.get("_fingerprint")
        if kept is None:
            kept = _identity.tree_digest(self.params)
            if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(self.params)):
                self.__dict__["_fingerprint"] = kept
        return kept

    @functools.cached_property
    def constants_digest(self) -> str | None:
        """Digest of ``constants``; None without them."""
        return None if self.constants is None else _identity.constants_digest(self.constants)

    def identity(self, examples: Examples | None = None) -> _identity.Identity:
        """Return the identity of the model: parameters, constants, output family, mask and, given examples, function.

        Args:
            examples: examples of the model; only their shapes and dtypes are used, to probe the function.
        """
        return _identity.model_identity(self, examples)

    def probe(self, example: Example) -> list[float] | None:
        """Compute the logits of a fixed input shaped like ``example``, which differ between different functions."""
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

    def program(self, function: Callable[..., Any], *static: Any, **options: Any) -> Callable[..., Any]:
        """Return a compiled function ``arguments -> function(*arguments, *static)``, made once per model.

        The cache belongs to the model and is freed with it. The cache of `jax.jit`, in contrast, would grow by a
        program for every new lambda of a user.

        Args:
            function: a pure function.
            *static: its last arguments: functions, choices, numbers. If one cannot be hashed, the function is compiled
                at every call.
            **options: of `jax.jit`. They must be the same for the same ``static``.
        """
        key, made = (function, static), jax.jit(lambda *arguments: function(*arguments, *static), **options)
        try:
            return self._programs.setdefault(key, made)
        except TypeError:  # an own choice with an array in it
            return made

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
        """Compute the logits as a function of the explained leaves (each once), for per-example gradients.

        ``params`` supplies the other leaves. It is an argument rather than a closure, so that it is not compiled in as
        a constant.
        """
        return self.logits_fn(self.space.join(params, selected), example)

    def selected_outcome(self, selected: tuple[Any, ...], params: PyTree, example: Example, j: jax.Array) -> jax.Array:
        """Compute logit j alone as a function of the explained leaves, by ``outcome_fn``."""
        assert self.outcome_fn is not None
        return self.outcome_fn(self.space.join(params, selected), example, j)

    def n_classes(self, example: Example) -> int:
        """Return C, without running the model.

        Raises:
            ValueError: ``logits_fn`` fails, or the logits are not a floating-point vector of a length that the output
                family allows.
        """
        try:
            shape = jax.eval_shape(self.logits_fn, self.params, example)
        except Exception as error:
            if is_own(error):
                raise
            raise ValueError(
                f"logits_fn raised {type(error).__name__} for one example, {_shapes(example)}, without a batch axis: "
                f"{_first_line(error)}; {_STACK if isinstance(example, list) else _EXPECTED}"
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
                f"label_names has {len(names)} names ({listing(names, 4)}), but the model has {shape.shape[0]} "
                "classes; pass one name per class, in the order of the logits"
            )
        return shape.shape[0]

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, PyTree], ...], tuple[Any, ...]]:
        """Return the parameters as leaves, and everything else as static data."""
        try:
            space = self.space
        except (TypeError, ValueError):  # leaves replaced by a JAX transformation have no layout
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
        """Return a model with other leaves in the same places; leaves that shared an array still count once."""
        *fields, space, constants = static
        made = object.__new__(cls)
        names = ("logits_fn", "mask", "output", "intermediates_fn", "label_names", "outcome_fn")
        made.__dict__.update(zip(names, fields), params=children[0], constants=constants.value)
        if space is not None:
            made.__dict__["space"] = space
        return made


jax.tree_util.register_pytree_with_keys_class(Model)


class _Constants:
    """Constants as static data, compared by digest because they need not be hashable."""

    def __init__(self, model: Model) -> None:
        self.value, self._digest = model.constants, model.constants_digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constants) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)


def check_model(model: Any) -> Model:
    """Return ``model`` after checking its type.

    Raises:
        TypeError: it is not a `Model`; the message names the adapter for its type.
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
"""Adapter for each base class of a framework."""


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
    """Return the adapter for an object or class of a framework; None for anything else."""
    kinds = value.__mro__ if isinstance(value, type) else type(value).__mro__
    origins = [kind.__module__ for kind in kinds if kind is not object]
    found = [remedy for name, remedy in ADAPTERS.items() if any(_within(origin, name) for origin in origins)]
    # A framework's wrapper of a function (equinox.filter_jit) counts as a function.
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
    """Describe the shapes and dtypes of an example's leaves for an error message."""
    leaves = [
        f"{jax.tree_util.keystr(path) or 'an array'} {np.shape(leaf)} {jnp.result_type(leaf)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(example)
    ]
    kind = type(example).__name__
    return listing(leaves, 4) if hasattr(example, "shape") else f"a {kind} of {listing(leaves, 2)}"


_STACK = "stack the examples of a list: jax.tree.map(lambda *x: np.stack(x), *examples)"
_EXPECTED = "expected logits (C,) from jax.numpy"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no message")[:200]


def _kind(value: Any) -> str:
    name = value.__qualname__ if isinstance(value, type) else type(value).__qualname__
    return f"the class {name}" if isinstance(value, type) else f"of type {name}"
