"""Batch sizes that fit in the memory of devices, and checks that results fit in memory or on disk."""

import shutil
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from npeff_jax._machine import free_host_memory, size_text, usable_per_device
from npeff_jax._sharding import EXAMPLES, round_up

CPU_BATCH_BYTES = 128 << 20
"""Bytes of dense rows of a batch on a CPU with enough memory; larger batches are not faster."""

MOST_EXAMPLES = 64
"""Maximum number of examples per device: for small models with long inputs, activations exceed the rows."""

FEW_EXAMPLES = 16
"""Batch size for sets of 9 to 63 examples, so that small sets of different sizes share one compiled program: compiling
takes longer than 15 padded examples of a model small enough for such batches."""

WORKING = 3
"""Memory per example, as a multiple of its dense rows, including gradients and activations. On a CPU, a BERT-base of
440 MB with rows of 880 MB peaked at 4.1 GB."""

ON_DEVICE = 1.3
"""The same for a program on an accelerator that computes gradients and selects entries. An initial guess; the actual
memory is known after compilation."""

TOO_LARGE = (
    "one example does not fit: {what}; explain fewer parameters with mask=..., take fewer rows (LowRank(max_rows=..., "
    "sketch=...)), or use devices with more memory"
)


def choose_batch_size(row_bytes: int, n_examples: int, mesh: Mesh, on_device: bool = False) -> int:
    """Choose the number of examples per batch, over all devices, for ``row_bytes`` of dense rows per example.

    With ``on_device``, the rows of a batch need not fit in memory together, see `choose_at_once`.

    Raises:
        ValueError: not even a single example fits.
    """
    devices = mesh.shape[EXAMPLES]
    wanted = round_up(FEW_EXAMPLES if FEW_EXAMPLES // 2 < n_examples < MOST_EXAMPLES else n_examples, devices)
    if on_device:
        return min(MOST_EXAMPLES * devices, wanted)
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
    return min(min(MOST_EXAMPLES, room) * devices, wanted)


def choose_at_once(row_bytes: int, mesh: Mesh) -> int | None:
    """Estimate how many examples fit on an accelerator at a time; None on a CPU, which has no limit."""
    free = free_on_accelerators(mesh)
    if free is None:
        return max(1, CPU_BATCH_BYTES // row_bytes)
    return max(1, int(free // (ON_DEVICE * row_bytes)))


def free_on_accelerators(mesh: Mesh) -> float | None:
    """Return the usable bytes per accelerator of ``mesh``; None if its devices are CPUs."""
    devices = list(mesh.devices.flat)
    return None if devices[0].platform == "cpu" else free_memory_of(devices)


def program_bytes(compiled: Any) -> float:
    """Return the bytes per device that a compiled program reports to need besides its arguments."""
    found = compiled.memory_analysis()
    return float(found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes)


def check_fits(size: int, path: Path | None) -> None:
    """Raise ValueError unless results of ``size`` bytes fit in memory, or on the disk of ``path``."""
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
    """Return the usable bytes per device for a batch: the minimum over the devices of this process."""
    return usable_per_device(devices, "pass batch_size")
