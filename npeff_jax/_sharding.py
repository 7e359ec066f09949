"""Device meshes, shardings and padding."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from npeff_jax._checks import check_integer

EXAMPLES = "examples"
"""The mesh axis that PEFs are computed along."""

MODEL = "model"
"""The mesh axis left to automatic partitioning, for models with sharded parameters."""

SHARDS = "shards"
"""The single axis of a factorization's mesh: parameters of the sparse form, rows of the kernel."""


def make_mesh(devices: Sequence[jax.Device] | None = None, *, model: int = 1) -> Mesh:
    """Return a mesh over all devices, or the given ones, to pass to functions that compute on several devices.

    Args:
        devices: devices to use; by default all.
        model: number of devices that share one copy of the parameters. Examples are sharded along the other axis.

    Returns:
        A mesh with the axes ``("examples", "model")``.

    Raises:
        TypeError: If ``devices`` are no devices.
        ValueError: If ``model`` does not divide the number of devices.
    """
    found = np.asarray(jax.devices() if devices is None else devices, dtype=object)
    strange = [device for device in found.reshape(-1) if not isinstance(device, jax.Device)]
    if strange or not found.size:
        got = f"has {strange[0]!r}, a {type(strange[0]).__name__}" if strange else "is empty"
        raise TypeError(f"devices {got}; expected a list of devices, such as jax.devices()[:4]")
    model = check_integer("model", model)
    if found.size % model:
        raise ValueError(f"model={model} does not divide {found.size} devices; choose a divisor")
    # Auto axes: jax.make_mesh has explicit ones by default, which reject the mixed products of the solvers.
    return Mesh(found.reshape(-1, model), (EXAMPLES, MODEL), axis_types=(AxisType.Auto,) * 2)


def check_mesh(mesh: Any) -> None:
    """Raise unless ``mesh`` is a mesh of devices or None.

    Raises:
        TypeError: If it is something else.
    """
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(f"mesh is of type {type(mesh).__name__}; pass npeff_jax.make_mesh(devices), or None")


def default_mesh(mesh: Mesh | None) -> Mesh:
    """Return the given mesh, or a mesh of JAX's default device alone if it is None."""
    check_mesh(mesh)
    if mesh is not None:
        return mesh
    device = next(iter(jax.device_put(np.zeros(())).devices()))  # respects jax.default_device
    return make_mesh([device])


def examples_mesh(mesh: Mesh | None) -> Mesh:
    """Return the given mesh, or one of JAX's default device, after checking that examples can be split over it.

    Raises:
        TypeError: If ``mesh`` is not a mesh.
        ValueError: If ``mesh`` has no axis for the examples.
    """
    check_mesh(mesh)
    if mesh is not None and EXAMPLES not in mesh.shape:
        raise ValueError(f"mesh has the axes {mesh.axis_names}, not {EXAMPLES!r}; pass npeff_jax.make_mesh(devices)")
    return default_mesh(mesh)


def factorization_mesh(mesh: Mesh | None) -> Mesh:
    """Return a one-axis mesh over the devices of ``mesh``, for arrays sharded along one axis."""
    devices = default_mesh(mesh).devices.reshape(-1)
    return Mesh(devices, (SHARDS,), axis_types=(AxisType.Auto,))


def sharded(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """Return a sharding that splits each array axis over the named mesh axis (None: not split)."""
    return NamedSharding(mesh, PartitionSpec(*axes))


def round_up(size: int, multiple: int) -> int:
    """Return the least multiple of ``multiple`` that is at least ``size``."""
    return -(-size // multiple) * multiple


def pad_rows(array: np.ndarray, size: int) -> np.ndarray:
    """Return ``array`` with its first axis padded to ``size`` by repeating its last row.

    The last row is repeated because a model may give NaN on zeros, which would look like an error in the user's data.
    """
    missing = size - array.shape[0]
    return array if missing == 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def fetch(array: jax.Array) -> np.ndarray:
    """Return an array on the host, gathered from all processes that hold parts of it."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return jax.device_get(array)  # explicit, so allowed by a transfer guard
    replicated = NamedSharding(array.sharding.mesh, PartitionSpec())  # type: ignore[attr-defined]
    return np.asarray(jax.jit(lambda x: x, out_shardings=replicated)(array))


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Place a host array on devices with the given sharding. Every process holds all of it and places its part."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def replicate(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Place a host array on every device of ``mesh``."""
    return place(np.asarray(array), NamedSharding(mesh, PartitionSpec()))
