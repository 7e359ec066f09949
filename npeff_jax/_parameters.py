"""The parameter space: the explained leaves of a parameter pytree, concatenated to one vector of length m.

A `ParameterLayout` is serialisable: names, shapes and offsets, which map a position in a pseudo-Fisher vector to a
parameter. A `ParameterSpace` adds the structure of the pytree, and converts between pytrees and vectors.
"""

import bisect
import dataclasses
import fnmatch
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax._types import PyTree

Mask = str | Sequence[str] | Callable[[str, Any], bool] | None
"""Which parameters to explain: a glob over paths (``"encoder/*"``), several of them, a predicate ``(path, leaf) ->
bool``, or None for every floating-point leaf."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One explained leaf. A leaf that occurs at several places of the pytree counts once, under its first name."""

    name: str
    shape: tuple[int, ...]
    offset: int
    aliases: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class ParameterLayout:
    """Names, shapes and offsets of the m explained parameters, in the order of their vector."""

    parameters: tuple[Parameter, ...]

    @property
    def size(self) -> int:
        """m, the number of explained parameters."""
        return self.parameters[-1].offset + self.parameters[-1].size

    def locate(self, index: int) -> tuple[str, tuple[int, ...]]:
        """Return the parameter that position ``index`` of the vector belongs to, and the multi-index within it.

        Raises:
            IndexError: If ``index`` is not in [0, m).
        """
        if not 0 <= index < self.size:
            raise IndexError(
                f"parameter index {index} is out of range; this model has {self.size} explained parameters"
            )
        found = self.parameters[bisect.bisect_right([p.offset for p in self.parameters], index) - 1]
        return found.name, tuple(int(i) for i in np.unravel_index(index - found.offset, found.shape))

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {"name": p.name, "shape": list(p.shape), "offset": p.offset, "aliases": list(p.aliases)}
            for p in self.parameters
        ]

    @classmethod
    def from_json(cls, entries: list[dict[str, Any]]) -> "ParameterLayout":
        return cls(tuple(Parameter(e["name"], tuple(e["shape"]), e["offset"], tuple(e["aliases"])) for e in entries))


@dataclasses.dataclass(frozen=True)
class ParameterSpace:
    """A layout and the structure of its pytree. Compared and hashed by value, hence usable as a static argument.

    Attributes:
        layout: names, shapes and offsets.
        treedef: structure of the whole parameter pytree.
        leaves: shapes and types of all its leaves.
        places: for each explained parameter, its positions among the pytree's leaves (several if shared).
    """

    layout: ParameterLayout
    treedef: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]
    places: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, params: PyTree, mask: Mask = None) -> "ParameterSpace":
        """Return the space of the parameters of ``params`` that ``mask`` selects.

        Raises:
            ValueError: If ``mask`` selects no floating-point parameter, names repeat, or a leaf is not an array.
        """
        with_path, treedef = jax.tree_util.tree_flatten_with_path(params)
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in with_path]
        leaves = [leaf for _, leaf in with_path]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two leaves of params are both called {twice!r}; rename a key that has a '/' in it")
        types = [_type_of(leaf, name) for leaf, name in zip(leaves, names, strict=True)]
        explains = _predicate(mask)
        places: dict[int, list[int]] = {}
        for place, leaf in enumerate(leaves):
            if jnp.issubdtype(types[place], jnp.floating):
                # The same array object twice is a shared parameter; equal Python numbers may be one object too.
                is_array = isinstance(leaf, jax.Array | np.ndarray)
                places.setdefault(id(leaf) if is_array else -1 - place, []).append(place)
        chosen = [p for p in places.values() if any(explains(names[place], leaves[place]) for place in p)]
        if not chosen:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise ValueError(f"mask={mask!r} leaves no floating-point parameter; the parameters are {shown}")
        parameters, offset = [], 0
        for p in chosen:
            entry = Parameter(names[p[0]], np.shape(leaves[p[0]]), offset, tuple(names[i] for i in p[1:]))
            parameters.append(entry)
            offset += entry.size
        shapes = tuple(jax.ShapeDtypeStruct(np.shape(leaf), kind) for leaf, kind in zip(leaves, types, strict=True))
        return cls(ParameterLayout(tuple(parameters)), treedef, shapes, tuple(tuple(p) for p in chosen))

    @property
    def size(self) -> int:
        """m, the number of explained parameters."""
        return self.layout.size

    def select(self, params: PyTree) -> tuple[Any, ...]:
        """Return the explained leaves, each once; gradients are taken with respect to these."""
        leaves = self.treedef.flatten_up_to(params)
        return tuple(leaves[places[0]] for places in self.places)

    def join(self, params: PyTree, selected: Sequence[Any]) -> PyTree:
        """Return ``params`` with the explained leaves replaced by ``selected``, at every place where they occur."""
        leaves = list(self.treedef.flatten_up_to(params))
        for places, leaf in zip(self.places, selected, strict=True):
            for place in places:
                leaves[place] = leaf
        return self.treedef.unflatten(leaves)

    def ravel(self, params: PyTree) -> jax.Array:
        """Return the (m,) vector of a pytree shaped like the parameters, without entries outside the mask."""
        return joined(self.select(params))

    def unravel(self, vector: jax.Array) -> PyTree:
        """Return the pytree of an (m,) vector, shaped like the parameters and zero outside the mask.

        Raises:
            ValueError: If ``vector`` is not of shape (m,).
        """
        if np.shape(vector) != (self.size,):
            raise ValueError(
                f"expected a vector of shape ({self.size},), one entry per parameter; got {np.shape(vector)}"
            )
        leaves: list[Any] = [None] * len(self.leaves)
        split = _split_compiled if isinstance(vector, jax.Array) else _split  # NumPy's parts stay on the host
        for part, places in zip(split(vector, self.layout), self.places, strict=True):
            for place in places:
                leaves[place] = part
        for place, shape in enumerate(self.leaves):
            if leaves[place] is None:  # outside the mask
                leaves[place] = jnp.zeros(shape.shape, shape.dtype)
        return self.treedef.unflatten(leaves)


@functools.partial(jax.jit, inline=True)
def joined(leaves: Sequence[Any]) -> jax.Array:
    """Concatenate the leaves to one vector, in one program: outside of `jit` each leaf would be compiled by itself."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])


@jax.jit
def stacked(trees: Sequence[PyTree]) -> PyTree:
    """Stack pytrees of one structure leaf by leaf, in one program."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _split(vector: Any, layout: ParameterLayout) -> list[Any]:
    """Return the part of the vector that belongs to each parameter, in the parameter's shape."""
    return [vector[p.offset : p.offset + p.size].reshape(p.shape) for p in layout.parameters]


_split_compiled = jax.jit(_split, static_argnames="layout", inline=True)
"""`_split` in one program, for the reason of `joined`."""


def _type_of(leaf: Any, name: str) -> Any:
    """Return the dtype that JAX gives a leaf of the parameters, or raise if it is not an array of numbers."""
    shown = f"the leaf {name!r} of params" if name else "params"
    dtype = getattr(leaf, "dtype", None)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ValueError(f"{shown} holds random keys, which are no parameters; take them out of params")
    if isinstance(dtype, np.dtype) and not dtype.isnative:
        raise ValueError(
            f"{shown} is in the other byte order ({dtype}); convert it: x.astype(x.dtype.newbyteorder('='))"
        )
    try:
        return jnp.result_type(leaf)
    except TypeError:
        pass
    what = "a torch tensor" if type(leaf).__module__.split(".")[0] == "torch" else f"of type {type(leaf).__name__}"
    raise ValueError(
        f"{shown} is {what}; params is a pytree of NumPy or JAX arrays: convert it, or take it out of params"
    )


def _predicate(mask: Mask) -> Callable[[str, Any], bool]:
    if mask is None:
        return lambda name, leaf: True
    if callable(mask):
        return mask
    patterns = (mask,) if isinstance(mask, str) else tuple(mask)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(
            f"mask={mask!r} is none of: a glob, a sequence of globs, a function (path, leaf) -> bool, None"
        )
    return lambda name, leaf: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
