"""Choices of the non-zeros to keep per example."""

import abc
import dataclasses
from typing import Any, SupportsIndex

from npeff_jax._checks import check_integer, normalise
from npeff_jax._identity import describe
from npeff_jax.pefs._device_rows import DeviceRows
from npeff_jax.pefs._device_selection import Kept, largest_on_device
from npeff_jax.pefs._selection import LeafRows, Selected, largest, shared_support


class Selection(abc.ABC):
    """Protocol of the choice of entries to keep. A subclass is a frozen dataclass with `width` and `select`.

    With `select_on_device` too, rows on an accelerator need not be transferred to the host.
    """

    @abc.abstractmethod
    def width(self, n_rows: int, m: int) -> int:
        """Return the maximum number of non-zeros kept of an example with up to ``n_rows`` rows over ``m`` parameters.

        Raises:
            ValueError: the number exceeds the number of entries.
        """

    @abc.abstractmethod
    def select(self, rows: LeafRows) -> Selected:
        """Select the entries to keep of one example, at most `width`."""

    def select_on_device(self, rows: DeviceRows) -> Kept:
        """Select the same entries as `select` in a compiled program; pure, of traced rows.

        Raises:
            NotImplementedError: there is no device version; rows are then transferred to the host.
        """
        raise NotImplementedError(f"{type(self).__name__} selects on the host only; define select_on_device")

    @property
    def on_device(self) -> bool:
        """Whether `select_on_device` matches `select`; not if a subclass overrides only the latter."""
        order = type(self).__mro__
        of = {name: next(i for i, c in enumerate(order) if name in vars(c)) for name in ("select", "select_on_device")}
        return of["select_on_device"] <= of["select"] and order[of["select_on_device"]] is not Selection

    @property
    def recorded(self) -> dict[str, Any]:
        """JSON-serialisable record, stored with the representation; empty if the number of columns determines it."""
        return {"keep": describe(self)}


Keep = SupportsIndex | Selection | None
"""Number of non-zeros to keep per example: K over all its rows, a `Selection` such as `PerRow` (proportional to its
number of rows) or `SharedSupport` (one support for all its rows), or None for all."""


@dataclasses.dataclass(frozen=True)
class PerRow(Selection):
    """Keep ``entries`` times c_i non-zeros of example i over all its rows together, proportional to its rank."""

    entries: int

    def __post_init__(self) -> None:
        normalise(self, entries=check_integer("entries", self.entries))

    def width(self, n_rows: int, m: int) -> int:
        _check_row(self, self.entries, m)
        return self.entries * n_rows

    def select(self, rows: LeafRows) -> Selected:
        return largest(rows, self.entries * rows.wanted)

    def select_on_device(self, rows: DeviceRows) -> Kept:
        return largest_on_device(rows, self.entries * rows.wanted, self.entries * rows.n_rows)


@dataclasses.dataclass(frozen=True)
class SharedSupport(Selection):
    """Keep the same ``parameters`` positions in all rows of an example: the largest diagonal entries of its Fisher."""

    parameters: int

    def __post_init__(self) -> None:
        normalise(self, parameters=check_integer("parameters", self.parameters))

    def width(self, n_rows: int, m: int) -> int:
        _check_row(self, self.parameters, m)
        return self.parameters * n_rows

    def select(self, rows: LeafRows) -> Selected:
        return shared_support(rows, self.parameters)

    def select_on_device(self, rows: DeviceRows) -> Kept:
        return largest_on_device(rows.by_parameter(), self.parameters, self.parameters)


@dataclasses.dataclass(frozen=True)
class _Largest(Selection):
    """Keep the K largest entries of all rows together, or all if K is None."""

    entries: int | None

    def width(self, n_rows: int, m: int) -> int:
        if self.entries is None:
            return n_rows * m
        if self.entries > n_rows * m:
            raise ValueError(
                f"keep={self.entries} is out of range: an example has {n_rows * m} entries; pass 1 to {n_rows * m}, or "
                "None"
            )
        return self.entries

    def select(self, rows: LeafRows) -> Selected:
        return largest(rows, rows.wanted * rows.size if self.entries is None else self.entries)

    def select_on_device(self, rows: DeviceRows) -> Kept:
        number = rows.n_rows * rows.size if self.entries is None else self.entries
        return largest_on_device(rows, number, number)

    @property
    def recorded(self) -> dict[str, Any]:
        return {}


def as_selection(keep: Any) -> Selection:
    """Return the selection specified by ``keep``.

    Raises:
        TypeError: ``keep`` is neither a `Selection` nor an integer.
        ValueError: ``keep`` is below 1.
    """
    if isinstance(keep, Selection):
        return keep
    if isinstance(keep, type) and issubclass(keep, Selection):
        raise TypeError(f"keep={keep.__name__} is a class; pass an object of it, such as {keep.__name__}(64)")
    return _Largest(None if keep is None else check_integer("keep", keep))


def _check_row(keep: Selection, each: int, m: int) -> None:
    if each > m:
        raise ValueError(f"keep={keep} is out of range: a row has {m} entries; pass 1 to {m}")
