"""Memory and processor cores that this machine offers.

The package uses `HOST_SHARE` of the free host memory, and `DEVICE_SHARE` of the free memory of an accelerator. CPU
devices share the memory of their host.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax

DEVICE_SHARE, HOST_SHARE = 0.8, 0.5
"""Usable shares of the free memory. A host's memory is also used by other programs and by the file cache."""

Item = TypeVar("Item")
Result = TypeVar("Result")

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux reports the limits of a container."""


def usable_on_host() -> float:
    """Return the bytes that may be used on this host."""
    return HOST_SHARE * free_host_memory()


def usable_per_device(devices: Sequence[Any], remedy: str) -> float:
    """Return the bytes that may be used per device: the least over the ``devices`` of this process.

    Args:
        devices: devices of one platform, of one process or several.
        remedy: end of the message: what to pass instead.

    Raises:
        ValueError: If an accelerator does not report its memory.
    """
    own = [device for device in devices if device.process_index == jax.process_index()]
    if own[0].platform == "cpu":
        return usable_on_host() / len(own)
    free = []
    for device in own:
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            raise ValueError(f"{device} does not report its memory, which is needed to choose sizes; {remedy}")
        free.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return DEVICE_SHARE * min(free)


def free_host_memory() -> float:
    """Return the bytes that this process could allocate without swapping, within the limit of its container."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    except (OSError, StopIteration):  # not Linux: half of the total
        found.append(0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        inactive = next(
            int(line.split()[1])
            for line in (CGROUP / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
        if limit != "max":
            found.append(float(limit) - float(used) + inactive)  # reclaimable file cache
    except (OSError, StopIteration, ValueError):
        pass
    return max(min(found), 0.0)


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def on_cores(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Map a function on all cores by threads; it should release the interpreter lock, as NumPy and SciPy do."""
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(function, items))


def size_text(count: float | int) -> str:
    """Return a number of bytes as text with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
