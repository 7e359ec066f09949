"""What one script has computed and another may use: trained parameters, PEFs, decompositions, perturbations."""

import os
import pathlib
import pickle
import time
from collections.abc import Callable
from typing import Any, TypeVar

Value = TypeVar("Value")


class Cache:
    """A folder of named values, each with the CPU seconds that it took.

    Attributes:
        reused: the CPU seconds that this process saved by finding what an earlier one had made.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.reused = folder, 0.0
        self._values: dict[str, Any] = {}

    def __call__(self, name: str, make: Callable[[], Value]) -> Value:
        """The value of that name, made if it is not there. ``make`` must not ask this cache: its time counts once."""
        if name not in self._values:
            path = self.folder / f"{name}.pickle"
            if path.exists():
                seconds, self._values[name] = pickle.loads(path.read_bytes())
                self.reused += seconds
            else:
                self._values[name] = self._make(path, make)
        return self._values[name]

    def _make(self, path: pathlib.Path, make: Callable[[], Value]) -> Value:
        start = time.process_time()
        value = make()
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(pickle.dumps((time.process_time() - start, value)))
        unfinished.rename(path)  # in one step: another script may be looking
        return value
