"""Solver checkpoints, written with Orbax (used in this file only).

A checkpoint holds W, the vectors in a form that does not depend on the devices, and the history. Products that a solver
carries are computed again on resuming, as they are at the start of every window, so a resumed run gives the same result
as an uninterrupted one.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from npeff_jax._checks import check_integer, normalise
from npeff_jax.store import writable_path

KEPT = 2
"""Number of checkpoints kept: the latest, and the previous one in case the latest cannot be read."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where and how often a running decomposition is saved. A later run with the same settings resumes from there.

    Attributes:
        directory: directory used by this decomposition only.
        every: number of windows, of at most ``Stopping.window`` steps, between checkpoints.
    """

    directory: str | os.PathLike[str]
    every: int = 4

    def __post_init__(self) -> None:
        where = writable_path(self.directory, "directory")  # absolute from now on
        normalise(self, directory=where, every=check_integer("every", self.every))


@dataclasses.dataclass(frozen=True, eq=False)
class Saved:
    """Contents of a checkpoint.

    Attributes:
        W: coefficients.
        G: vectors as returned by `RowSpace.to_host`.
        losses: loss after each step.
        seconds: wall-clock time after each step.
        counters: number of exchanges, step of the last one, and the state of `Search`.
        state: arrays of the solver's state, if W and G do not determine it.
    """

    W: Float[np.ndarray, "n r"]
    G: Float[np.ndarray, "r size"]
    losses: Float[np.ndarray, "steps"]
    seconds: Float[np.ndarray, "steps"]
    counters: Int[np.ndarray, "_"]
    state: tuple[np.ndarray, ...] = ()


class CheckpointStore:
    """Checkpoints of one decomposition, with the settings that must agree for a run to resume from them."""

    def __init__(self, checkpoints: Checkpoints, settings: dict[str, Any]):
        from orbax.checkpoint import v1 as ocp

        self.every, self._settings = checkpoints.every, settings
        self._ocp, self._directory = ocp, pathlib.Path(checkpoints.directory)
        if self._directory.exists() and not self._directory.is_dir():
            raise NotADirectoryError(f"directory={self._directory} is a file; choose a folder for the checkpoints")
        with self._naming("opened"):
            self._checkpointer = ocp.training.Checkpointer(
                self._directory,
                preservation_policy=ocp.training.preservation_policies.LatestN(KEPT),
                cleanup_tmp_directories=True,
            )

    @contextlib.contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """Convert errors of Orbax to an OSError that names the directory."""
        try:
            yield
        except Exception as error:
            said = next(iter(str(error).splitlines()), "")[:200]
            raise OSError(
                f"the checkpoints in {self._directory} cannot be {what} ({type(error).__name__}: {said}); remove what "
                "is damaged there to go on from an older one or from the start, or use another directory"
            ) from error

    def load(self) -> Saved | None:
        """Load the latest checkpoint, or return None if there is none.

        Raises:
            ValueError: the checkpoint was written with other settings; the message names them.
            OSError: the checkpoint cannot be read.
        """
        with self._naming("read"):
            latest = self._checkpointer.latest
            if latest is None:
                return None
            found = self._checkpointer.metadata(latest.step).custom_metadata
            if not found:
                raise ValueError(f"the metadata of step {latest.step} are missing")
        differing = [name for name in self._settings if not _same(found.get(name), self._settings[name])]
        if differing:
            name = differing[0]
            raise ValueError(
                f"the checkpoints in {self._checkpointer.directory} are of another run: {', '.join(differing)} differ "
                f"({name} was {found.get(name)!r}, now {self._settings[name]!r}); use another directory or the same "
                "settings"
            )
        with self._naming("read"):
            loaded = {name: np.asarray(value) for name, value in self._checkpointer.load(latest.step).items()}
            state = [loaded.pop(f"state_{k}") for k in range(len(loaded)) if f"state_{k}" in loaded]
            return Saved(**loaded, state=tuple(state))

    def save(self, saved: Saved) -> None:
        """Write a checkpoint, and return once it is committed to disk."""
        tree = {f.name: np.asarray(getattr(saved, f.name)) for f in dataclasses.fields(saved) if f.name != "state"}
        tree |= {f"state_{k}": array for k, array in enumerate(saved.state)}
        with self._naming("written"):
            self._checkpointer.save(len(saved.losses), tree, custom_metadata=self._settings, overwrite=True)

    def close(self) -> None:
        """Release the directory."""
        self._checkpointer.close()


ROUNDING = 1e-5
"""Relative difference up to which statistics of the same rows, computed on different devices, count as equal."""


def _same(old: Any, new: Any) -> bool:
    """Return whether two settings are equal; lists of numbers are compared up to `ROUNDING`."""
    if isinstance(new, list) and isinstance(old, list) and all(isinstance(x, float) for x in [*new, *old]):
        return len(old) == len(new) and bool(np.allclose(old, new, rtol=ROUNDING, atol=0))
    return bool(old == new)
