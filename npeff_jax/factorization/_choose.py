"""Which row space: the one with the least estimated time among those that fit, and a sentence that says why."""

import dataclasses
import os

import jax

from npeff_jax.factorization._settings import Dense, Kernel, RowChoice, Sparse
from npeff_jax.factorization._stack import Stack
from npeff_jax.pefs import FisherKind

STEPS = 100
"""Steps that the one-time work is weighed against: what the default stopping rule takes on most problems."""

RATES = {"cpu": (1.1e11, 1.9e10), "gpu": (5e13, 5e11)}
"""Operations a second of dense and of sparse products. CPU: measured on two cores, with rows of a digits network. GPU:
float32 on tensor cores against a bandwidth of 4 TB/s, an estimate. Only their ratio matters here."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a choice takes.

    Attributes:
        memory: bytes, on all devices together.
        seconds: for `STEPS` steps, one-time work included.
    """

    memory: float
    seconds: float


def costs(stacked: Stack, r: int, kind: FisherKind, platform: str) -> dict[RowChoice, Cost]:
    """Estimates for every choice that suits the kind."""
    (N, m), nnz = stacked.A.shape, float(stacked.A.nnz)
    dense, sparse = RATES.get(platform, RATES["gpu"])
    vectors = 16.0 * r * m  # G, its gradient, its direction and the next G
    found: dict[RowChoice, Cost] = {
        Dense(): Cost(4.0 * N * m + vectors, STEPS * 4 * N * m * r / dense),
        Sparse(): Cost(16 * nnz + vectors, STEPS * 4 * nnz * r / sparse),
    }
    if kind is FisherKind.LOW_RANK:
        build = min(2 * N * N * m / dense, 4 * nnz * N / sparse)  # sparse at half the rate: out of the cache
        found[Kernel()] = Cost(4.0 * N * N + 16 * r * N, build + STEPS * 2 * N * N * r / dense + 2 * nnz * r / sparse)
    return found


def choose(
    stacked: Stack, r: int, kind: FisherKind, devices: list[jax.Device], given: RowChoice | None
) -> tuple[RowChoice, str]:
    """The choice and why.

    Raises:
        ValueError: a given choice that does not fit or suit, or none that fits; says what would.
    """
    limit = memory_limit(devices)
    estimates = costs(stacked, r, kind, devices[0].platform)
    fitting = {choice: cost for choice, cost in estimates.items() if cost.memory <= limit}
    listing = ", ".join(f"{name_of(choice)} {bytes_of(cost.memory)}" for choice, cost in estimates.items())
    if isinstance(given, Kernel) and kind is FisherKind.DIAGONAL:
        raise ValueError("rows=Kernel() is for low-rank PEFs: H ≥ 0 cannot be kept in it; choose Dense() or Sparse()")
    if isinstance(given, Kernel) and given.sketch is not None:
        return given, f"sketched kernel of {given.sketch} columns: asked for"
    if given is not None:
        if given not in fitting:
            would = ", ".join(f"{name_of(c)}()" for c in fitting) or "more devices or a larger min_count"
            if isinstance(given, Kernel):
                would += " or Kernel(sketch=4096)"
            raise ValueError(
                f"rows={name_of(given)}() needs {bytes_of(estimates[given].memory)} for {stacked.A.shape[0]} rows, "
                f"but {bytes_of(limit)} are there; {would} would fit"
            )
        return given, f"{name_of(given)}: asked for"
    if not fitting:
        raise ValueError(
            f"no row space fits {bytes_of(limit)} ({listing}); use more devices, a larger min_count, fewer components "
            "or rows=Kernel(sketch=4096)"
        )
    best = min(fitting, key=lambda choice: fitting[choice].seconds)
    times = ", ".join(f"{name_of(choice)} {cost.seconds:.2g} s" for choice, cost in estimates.items())
    return best, (
        f"{name_of(best)}: least estimated time of those that fit {bytes_of(limit)} ({STEPS} steps: {times}; {listing})"
    )


def memory_limit(devices: list[jax.Device]) -> float:
    """Bytes that may be used on all devices together: half of what there is, since results and copies need room."""
    stats = next(d for d in devices if d.process_index == jax.process_index()).memory_stats()
    if stats and "bytes_limit" in stats:
        return 0.5 * stats["bytes_limit"] * len(devices)
    hosts = len({device.process_index for device in devices})
    return 0.5 * host_memory() * hosts


def host_memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def name_of(choice: RowChoice) -> str:
    """The class's name."""
    return type(choice).__name__


def bytes_of(count: int | float) -> str:
    """A size for a sentence."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
