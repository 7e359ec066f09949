"""Several processes of `jax.distributed` that write one set of PEFs: each its batches, the first one the manifest."""

import jax
from jax.sharding import Mesh


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def index() -> int:
    """Which of them this is."""
    return jax.process_index()


def wait_for_all(name: str) -> None:
    """Go on when every process has come here. Each must come to the same places in the same order."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def check_own_devices(mesh: Mesh) -> None:
    """Raise unless all devices of ``mesh`` are of this process.

    Raises:
        ValueError: some are of another.
    """
    if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
        raise ValueError(
            "the mesh has devices of other processes; each process computes its own batches: pass "
            "make_mesh(jax.local_devices())"
        )
