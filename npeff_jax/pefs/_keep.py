"""How many non-zeros of an example are kept: choices that carry their selection."""

import abc
import dataclasses
from typing import Any, SupportsIndex

from npeff_jax._checks import check_integer, normalise
from npeff_jax._identity import describe
from npeff_jax.pefs._device_rows import DeviceRows
from npeff_jax.pefs._device_selection import Kept, largest_on_device
from npeff_jax.pefs._selection import LeafRows, Selected, largest, shared_support


class Selection(abc.ABC):
    """Which entries of an example's rows are kept. An own one is a frozen dataclass with `width` and `select`.

    Where the rows are on an accelerator, one with `select_on_device` too spares them the way to the host.
    """

    @abc.abstractmethod
    def width(self, n_rows: int, m: int) -> int:
        """Return the most non-zeros that an example of at most ``n_rows`` rows over ``m`` parameters keeps.

        Raises:
            ValueError: more than there are.
        """

    @abc.abstractmethod
    def select(self, rows: LeafRows) -> Selected:
        """Return the kept entries of one example, at most `width` of them."""

    def select_on_device(self, rows: DeviceRows) -> Kept:
        """Return the same as `select`, inside a compiled program: pure, of traced rows.

        Raises:
            NotImplementedError: there is no such way: the rows are brought to the host.
        """
        raise NotImplementedError(f"{type(self).__name__} selects on the host alone; define select_on_device")

    @property
    def on_device(self) -> bool:
        """Whether `select_on_device` says what `select` does: a class that overrides only the latter has none."""
        order = type(self).__mro__
        of = {name: next(i for i, c in enumerate(order) if name in vars(c)) for name in ("select", "select_on_device")}
        return of["select_on_device"] <= of["select"] and order[of["select_on_device"]] is not Selection

    @property
    def recorded(self) -> dict[str, Any]:
        """What is written down with the representation: empty where the number of columns says all."""
        return {"keep": describe(self)}


Keep = SupportsIndex | Selection | None
"""How many non-zeros to keep of one example: K over all its rows, a `Selection` such as `PerRow` (growing with its
rank) or `SharedSupport` (one support for all its rows), or (None) all."""


@dataclasses.dataclass(frozen=True)
class PerRow(Selection):
    """``keep`` that grows with the rank: ``entries`` times c_i non-zeros for example i, over all its rows together."""

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
    """``keep`` as ``parameters`` positions per example, the same in each of its rows: those of the largest diagonal
    entries of its Fisher.
    """

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
    """The K largest entries of all rows together; all of them where K is None."""

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
    """Return the selection that ``keep`` stands for.

    Raises:
        TypeError: it is none, and no whole number.
        ValueError: it is below 1.
    """
    if isinstance(keep, Selection):
        return keep
    if isinstance(keep, type) and issubclass(keep, Selection):
        raise TypeError(f"keep={keep.__name__} is a class; pass an object of it, such as {keep.__name__}(64)")
    return _Largest(None if keep is None else check_integer("keep", keep))


def _check_row(keep: Selection, each: int, m: int) -> None:
    if each > m:
        raise ValueError(f"keep={keep} is out of range: a row has {m} entries; pass 1 to {m}")
