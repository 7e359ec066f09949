"""Which row space: the one with the least estimated time among those that fit, and a sentence that says why."""

import os
from typing import Any

import jax
from jax.sharding import Mesh

from npeff_jax.factorization.row_spaces._base import STEPS, RowChoice, name_of
from npeff_jax.factorization.row_spaces._blocks import BlockedRows
from npeff_jax.factorization.row_spaces._dense import DenseRows
from npeff_jax.factorization.row_spaces._kernel import KernelRows
from npeff_jax.factorization.row_spaces._sparse import SparseRows
from npeff_jax.pefs import Kind

CHOICES: tuple[RowChoice, ...] = (DenseRows(), SparseRows(), KernelRows())
"""What is chosen from where users pass no ``rows=``."""

SKETCH = KernelRows(sketch=4096)
"""What is proposed where nothing fits."""


def check_rows(given: Any, kind: Kind) -> None:
    """Raise unless ``given`` is None or a `RowChoice` for PEFs of ``kind``."""
    suiting = " or ".join(f"{name_of(choice)}" for choice in CHOICES if kind in choice.kinds)
    if isinstance(given, type):
        raise TypeError(f"rows={given.__name__} is a class; pass an instance, rows={given.__name__}()")
    if given is not None and not isinstance(given, RowChoice):
        raise TypeError(f"rows={given!r} is of type {type(given).__name__}; pass {suiting}, or an own RowChoice")
    if given is not None and kind not in given.kinds:
        kinds = " and ".join(allowed.value.replace("_", "-") for allowed in given.kinds)
        raise ValueError(f"rows={name_of(given)} is for {kinds} PEFs, these are {kind.value}; choose {suiting}")


def choose(A: BlockedRows, r: int, kind: Kind, mesh: Mesh, given: RowChoice | None) -> tuple[RowChoice, str]:
    """Return the choice and why it was made.

    Raises:
        ValueError: a given choice that does not fit or suit, or none that fits; says what would.
    """
    check_rows(given, kind)
    limit = memory_limit(list(mesh.devices.flat))
    estimates = {choice: choice.cost(A, r, mesh) for choice in CHOICES if kind in choice.kinds}
    fitting = {choice: cost for choice, cost in estimates.items() if cost.memory <= limit}
    if given is not None:
        needed = given.cost(A, r, mesh).memory
        if needed > limit:
            would = " or ".join(name_of(c) for c in fitting) or "more devices or a larger min_count"
            if kind in SKETCH.kinds and SKETCH.cost(A, r, mesh).memory < min(limit, needed):
                would += f" or {name_of(SKETCH)}"
            raise ValueError(
                f"rows={name_of(given)} needs {bytes_of(needed)} for {A.shape[0]} rows, but {bytes_of(limit)} are "
                f"there; {would} would fit"
            )
        return given, f"{name_of(given)}: asked for"
    listing = ", ".join(f"{name_of(choice)} {bytes_of(cost.memory)}" for choice, cost in estimates.items())
    if not fitting:
        raise ValueError(
            f"no row space fits {bytes_of(limit)} ({listing}); use more devices, a larger min_count, fewer components "
            f"or rows={name_of(SKETCH)}"
        )
    best = min(fitting, key=lambda choice: fitting[choice].seconds)
    times = ", ".join(f"{name_of(choice)} {cost.seconds:.2g} s" for choice, cost in estimates.items())
    return best, (
        f"{name_of(best)}: least estimated time of those that fit {bytes_of(limit)} ({STEPS} steps: {times}; {listing})"
    )


def memory_limit(devices: list[jax.Device]) -> float:
    """Return the bytes that may be used on all devices together: half of what there is, since results need room too."""
    stats = next(d for d in devices if d.process_index == jax.process_index()).memory_stats()
    if stats and "bytes_limit" in stats:
        return 0.5 * stats["bytes_limit"] * len(devices)
    hosts = len({device.process_index for device in devices})
    return 0.5 * host_memory() * hosts


def host_memory() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def bytes_of(count: int | float) -> str:
    """Return a size for a sentence."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
