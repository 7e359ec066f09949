"""Several processes of `jax.distributed` that write one set of PEFs: each writes batches, the first the manifest."""

import jax
from jax.sharding import Mesh


def count() -> int:
    """Return the number of processes."""
    return jax.process_count()


def index() -> int:
    """Return the index of this process."""
    return jax.process_index()


def wait_for_all(name: str) -> None:
    """Wait until every process has called this function. All must make the same calls in the same order."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def check_own_devices(mesh: Mesh) -> None:
    """Raise ValueError unless all devices of ``mesh`` belong to this process."""
    if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
        raise ValueError(
            "the mesh has devices of other processes; each process computes its own batches: pass "
            "make_mesh(jax.local_devices())"
        )
