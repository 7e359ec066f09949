"""What fits: the examples of a batch beside the device's free memory, and results beside the host's or the disk's."""

import shutil
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from npeff_jax._machine import free_host_memory, size_text, usable_per_device
from npeff_jax._sharding import EXAMPLES, round_up

CPU_BATCH_BYTES = 128 << 20
"""Dense rows of a batch on a CPU where memory does not bind: more gained nothing."""

MOST_EXAMPLES = 64
"""An upper bound a device: the activations of small models with long inputs would outgrow the rows."""

WORKING = 3
"""Memory an example takes, over that of its dense rows: the gradients they are put together from, and activations. On a
CPU a BERT-base of 440 MB, whose rows are 880 MB, peaked at 4.1 GB."""

ON_DEVICE = 1.3
"""The same where one program goes from gradients to entries and is compiled for an accelerator. A first guess: the
compiled program tells."""

TOO_LARGE = (
    "one example does not fit: {what}; explain fewer parameters with mask=..., take fewer rows (LowRank(max_rows=..., "
    "sketch=...)), or use devices with more memory"
)


def choose_batch_size(row_bytes: int, n_examples: int, mesh: Mesh, on_device: bool = False) -> int:
    """Examples a batch, over all devices, for dense rows of ``row_bytes`` an example.

    With ``on_device`` rows need not fit together: a program selects as it goes through a batch, see `choose_at_once`.

    Raises:
        ValueError: not even one example fits.
    """
    devices = mesh.shape[EXAMPLES]
    if on_device:
        return min(MOST_EXAMPLES * devices, round_up(n_examples, devices))
    free = free_memory_of(list(mesh.devices.flat))
    room = int(free // (WORKING * row_bytes))
    if room < 1:
        raise ValueError(
            f"the dense rows of one example are {size_text(row_bytes)}, and computing them takes about "
            f"{size_text(WORKING * row_bytes)}, but {size_text(free)} are free for it on a device; explain fewer "
            "parameters with mask=..., or take fewer rows: LowRank(max_rows=..., sketch=...), or RowBasis.CLASSES with "
            "max_rows. If you know that it fits, pass batch_size"
        )
    if mesh.devices.flat[0].platform == "cpu":
        room = min(room, max(1, CPU_BATCH_BYTES // row_bytes))
    return min(min(MOST_EXAMPLES, room) * devices, round_up(n_examples, devices))


def choose_at_once(row_bytes: int, mesh: Mesh) -> int | None:
    """Return for how many examples a device has room at a time, by a guess; None on a CPU: as many as there are."""
    free = free_on_accelerators(mesh)
    if free is None:
        return max(1, CPU_BATCH_BYTES // row_bytes)
    return max(1, int(free // (ON_DEVICE * row_bytes)))


def free_on_accelerators(mesh: Mesh) -> float | None:
    """Return the bytes that may be used on each accelerator of ``mesh``; None where its devices are CPUs."""
    devices = list(mesh.devices.flat)
    return None if devices[0].platform == "cpu" else free_memory_of(devices)


def program_bytes(compiled: Any) -> float:
    """Return the bytes per device that a compiled program takes beside its arguments, by its own account."""
    found = compiled.memory_analysis()
    return float(found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes)


def check_fits(size: int, path: Path | None) -> None:
    """Raise unless results of ``size`` bytes fit in memory, or on the disk of ``path``.

    Raises:
        ValueError: they do not.
    """
    if path is None:
        free, where = free_host_memory(), "in memory"
        remedy = "write them to a path, or keep fewer entries"
    else:
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        free, where = shutil.disk_usage(there).free, f"on the disk of {path}"
        remedy = "make room, or keep fewer entries"
    if size > free:
        raise ValueError(f"the PEFs would take {size_text(size)}, but {size_text(free)} are free {where}; {remedy}")


def free_memory_of(devices: list[Any]) -> float:
    """Return the bytes that a batch may use on each of some devices: the least of those of this process."""
    return usable_per_device(devices, "pass batch_size")
