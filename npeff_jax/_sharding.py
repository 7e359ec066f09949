"""Meshes, specs and padding: the only file that knows devices."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

EXAMPLES = "examples"
"""The mesh axis that PEFs are computed along."""

MODEL = "model"
"""The mesh axis that is left to the partitioner, for models whose parameters are sharded."""

SHARDS = "shards"
"""The single axis of a factorization's mesh: parameters of the sparse form, rows of the kernel."""


def make_mesh(devices: Sequence[jax.Device] | None = None, *, model: int = 1) -> Mesh:
    """A mesh over every device there is, to pass where results should be computed on all of them.

    Args:
        devices: which devices; all by default.
        model: devices that share one copy of the parameters. The rest of the factor goes to examples.

    Returns:
        A mesh with the axes ``("examples", "model")``.

    Raises:
        ValueError: ``model`` does not divide the number of devices.
    """
    found = np.asarray(jax.devices() if devices is None else devices, dtype=object)
    if model < 1 or found.size % model:
        raise ValueError(f"model={model} does not divide {found.size} devices; choose a divisor")
    # Auto axes: jax.make_mesh has explicit ones by default, which reject the mixed products of the solvers.
    return Mesh(found.reshape(-1, model), (EXAMPLES, MODEL), axis_types=(AxisType.Auto,) * 2)


def default_mesh(mesh: Mesh | None) -> Mesh:
    """The given mesh, or one of JAX's default device alone: nothing takes every device silently."""
    if mesh is not None:
        return mesh
    device = next(iter(jax.device_put(np.zeros(())).devices()))  # honours jax.default_device, whichever way it was set
    return make_mesh([device])


def examples_mesh(mesh: Mesh | None) -> Mesh:
    """Return the given mesh, or one of JAX's default device, after checking that examples can be split over it.

    Raises:
        TypeError: it is no mesh.
        ValueError: it has no axis for the examples.
    """
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(f"mesh is of type {type(mesh).__name__}; pass npeff_jax.make_mesh(devices), or None")
    if mesh is not None and EXAMPLES not in mesh.shape:
        raise ValueError(f"mesh has the axes {mesh.axis_names}, not {EXAMPLES!r}; pass npeff_jax.make_mesh(devices)")
    return default_mesh(mesh)


def factorization_mesh(mesh: Mesh | None) -> Mesh:
    """The devices of ``mesh`` in a row, for arrays that are sharded along one axis only."""
    devices = default_mesh(mesh).devices.reshape(-1)
    return Mesh(devices, (SHARDS,), axis_types=(AxisType.Auto,))


def sharded(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """A sharding that splits one array axis after the other over the named mesh axes (None: not split)."""
    return NamedSharding(mesh, PartitionSpec(*axes))


def round_up(size: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that is no less than ``size``."""
    return -(-size // multiple) * multiple


def pad_rows(array: np.ndarray, size: int) -> np.ndarray:
    """``array`` with its first axis padded to ``size`` by repeating its last row.

    A repeated row, not zeros: a model may do anything on zeros, and NaN would look like the user's.
    """
    missing = size - array.shape[0]
    return array if missing == 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def fetch(array: jax.Array) -> np.ndarray:
    """An array on the host, whole, also where other processes hold parts of it."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    replicated = NamedSharding(array.sharding.mesh, PartitionSpec())  # type: ignore[attr-defined]
    return np.asarray(jax.jit(lambda x: x, out_shardings=replicated)(array))


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array of the host on the devices. Every process holds the whole and places its own part."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def replicate(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """An array on every device of ``mesh``."""
    return place(np.asarray(array), NamedSharding(mesh, PartitionSpec()))
