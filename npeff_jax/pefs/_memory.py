"""What fits: the examples of a batch beside the device's free memory, and results beside the host's or the disk's."""

import os
import shutil
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from npeff_jax._sharding import EXAMPLES, round_up

CPU_BATCH_BYTES = 128 << 20
"""Dense rows of a batch on a CPU where memory does not bind: more gained nothing."""

MOST_EXAMPLES = 64
"""An upper bound a device: the activations of small models with long inputs would outgrow the rows."""

WORKING = 3
"""Memory an example takes, over that of its dense rows: the gradients they are put together from, and activations. On a
CPU a BERT-base of 440 MB, whose rows are 880 MB, peaked at 4.1 GB."""

DEVICE_SHARE, HOST_SHARE = 0.8, 0.5
"""Of the free memory. An accelerator is ours alone; a host is shared, and the file cache wants some too."""


def choose_batch_size(row_bytes: int, n_examples: int, mesh: Mesh) -> int:
    """Examples a batch, over all devices, for dense rows of ``row_bytes`` an example.

    Raises:
        ValueError: not even one example fits.
    """
    devices = mesh.shape[EXAMPLES]
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
    """Bytes that each of some devices may use: the least of those of this process."""
    own = [device for device in devices if device.process_index == jax.process_index()]
    stats = [device.memory_stats() for device in own]
    if all(s and "bytes_limit" in s for s in stats):
        return DEVICE_SHARE * min(s["bytes_limit"] - s["bytes_in_use"] for s in stats)
    return HOST_SHARE * free_host_memory() / len(own)


def free_host_memory() -> float:
    """Bytes that could be had without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: half of what there is
        return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def size_text(count: float | int) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
