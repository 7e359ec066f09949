"""Choice of the row space: the one with the least estimated time among those that fit in memory."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from npeff_jax._machine import size_text, usable_per_device
from npeff_jax.factorization.row_spaces._base import STEPS, Cost, RowChoice, name_of
from npeff_jax.factorization.row_spaces._blocks import BlockedRows
from npeff_jax.factorization.row_spaces._dense import DenseRows
from npeff_jax.factorization.row_spaces._kernel import KernelRows
from npeff_jax.factorization.row_spaces._rates import measure, rates
from npeff_jax.factorization.row_spaces._sparse import SparseRows
from npeff_jax.pefs import FisherKind

CHOICES: tuple[RowChoice, ...] = (DenseRows(), SparseRows(), KernelRows())
"""Candidates if users pass no ``rows=``."""

MEASURED_FROM = 2.0
"""Estimated seconds above which it is worthwhile to measure the speed of this machine."""

SWEEPS = 10
"""Time of two HALS sweeps, in units of a product of WᵀW with H: a fifth of their arithmetic is elementwise."""

SKETCH = KernelRows(sketch=4096)
"""Choice proposed if no row space fits."""


def check_rows(given: Any, kind: FisherKind) -> None:
    """Raise unless ``given`` is None or a `RowChoice` that supports PEFs of ``kind``."""
    suiting = " or ".join(f"{name_of(choice)}" for choice in CHOICES if kind in choice.kinds)
    if isinstance(given, type):
        raise TypeError(f"rows={given.__name__} is a class; pass an instance, rows={given.__name__}()")
    if given is not None and not isinstance(given, RowChoice):
        raise TypeError(f"rows={given!r} is of type {type(given).__name__}; pass {suiting}, or an own RowChoice")
    if given is not None and kind not in given.kinds:
        kinds = " and ".join(allowed.value.replace("_", "-") for allowed in given.kinds)
        raise ValueError(f"rows={name_of(given)} is for {kinds} PEFs, these are {kind.value}; choose {suiting}")


def choose(A: BlockedRows, r: int, kind: FisherKind, mesh: Mesh, given: RowChoice | None) -> tuple[RowChoice, str]:
    """Choose a row space; return it with a sentence that gives the reason.

    Raises:
        ValueError: the given choice does not fit or suit, or none fits; the message says what would.
    """
    check_rows(given, kind)
    devices = list(mesh.devices.flat)
    if given is not None and devices[0].platform != "cpu" and not _tells_memory(devices):
        return given, f"{name_of(given)}: asked for, on devices that do not tell their memory"
    limit = memory_limit(devices)
    estimates = costs(A, r, kind, mesh)
    if given is None and min(cost.seconds for cost in estimates.values()) > MEASURED_FROM:
        measure(mesh)
        estimates = costs(A, r, kind, mesh)
    sizes = {choice: needed_memory(cost, devices) for choice, cost in estimates.items()}
    fitting = {choice: cost for choice, cost in estimates.items() if sizes[choice] <= limit}
    if given is not None:
        needed = sizes[given] if given in sizes else needed_memory(given.cost(A, r, mesh), devices)
        if needed > limit:
            would = " or ".join(name_of(c) for c in fitting) or "more devices or a larger min_count"
            if kind in SKETCH.kinds and needed_memory(SKETCH.cost(A, r, mesh), devices) < min(limit, needed):
                would += f" or {name_of(SKETCH)}"
            raise ValueError(
                f"rows={name_of(given)} needs {size_text(needed)} for {A.shape[0]} rows, but {size_text(limit)} are "
                f"there; {would} would fit"
            )
        return given, f"{name_of(given)}: asked for"
    listing = ", ".join(f"{name_of(choice)} {size_text(size)}" for choice, size in sizes.items())
    if not fitting:
        raise ValueError(
            f"no row space fits {size_text(limit)} ({listing}); use more devices, a larger min_count, fewer components "
            f"or rows={name_of(SKETCH)}"
        )
    best = min(fitting, key=lambda choice: fitting[choice].seconds)
    times = ", ".join(f"{name_of(choice)} {cost.seconds:.2g} s" for choice, cost in estimates.items())
    return best, (
        f"{name_of(best)}: least estimated time of those that fit {size_text(limit)} "
        f"({STEPS} steps: {times}; {listing})"
    )


def costs(A: BlockedRows, r: int, kind: FisherKind, mesh: Mesh) -> dict[RowChoice, Cost]:
    """Estimate the cost of each choice with the default solvers, `HALS` and `DampedALS`."""
    found = {choice: choice.cost(A, r, mesh) for choice in CHOICES if kind in choice.kinds}
    if kind is FisherKind.DIAGONAL:  # sweeps over H cost the same for every choice
        more = STEPS * (SWEEPS * 2 - 6 / 2) * r * r * A.shape[1] / rates(mesh).dense
        found = {choice: dataclasses.replace(cost, seconds=cost.seconds + more) for choice, cost in found.items()}
    return found


def _tells_memory(devices: list[jax.Device]) -> bool:
    own = [device for device in devices if device.process_index == jax.process_index()]
    return all("bytes_limit" in (device.memory_stats() or {}) for device in own)


def memory_limit(devices: list[jax.Device]) -> float:
    """Return the usable bytes of all devices together."""
    return len(devices) * usable_per_device(devices, "pass rows=KernelRows(), SparseRows() or DenseRows()")


def needed_memory(cost: Cost, devices: list[jax.Device]) -> float:
    """Return the bytes to compare with `memory_limit`; on a CPU they include the host's, which share its memory."""
    return cost.memory + (cost.host if devices[0].platform == "cpu" else 0.0)
