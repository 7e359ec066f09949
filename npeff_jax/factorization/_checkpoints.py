"""Solver checkpoints with Orbax: the one file that knows it.

W, the vectors in a form that does not depend on the devices, and the history. Carried products are computed anew, so a
resumed run repeats what an uninterrupted one does.
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
"""Checkpoints kept: the last one, and one before in case it cannot be read."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where and how often a decomposition is saved on its way; a later run with the same settings resumes there.

    Attributes:
        directory: of this decomposition alone.
        every: windows of ``Stopping.window`` steps between checkpoints.
    """

    directory: str | os.PathLike[str]
    every: int = 4

    def __post_init__(self) -> None:
        where = writable_path(self.directory, "directory")  # from now on, whatever chdir does
        normalise(self, directory=where, every=check_integer("every", self.every))


@dataclasses.dataclass(frozen=True, eq=False)
class Saved:
    """A point on the way.

    Attributes:
        W: coefficients.
        G: vectors as `RowSpace.to_host` gives them.
        losses: one a step.
        seconds: one a step.
        counters: how many exchanges, the step of the last one, and what they try next.
        state: arrays of the solver's state, where W and G do not determine it.
    """

    W: Float[np.ndarray, "n r"]
    G: Float[np.ndarray, "r size"]
    losses: Float[np.ndarray, "steps"]
    seconds: Float[np.ndarray, "steps"]
    counters: Int[np.ndarray, "_"]
    state: tuple[np.ndarray, ...] = ()


class CheckpointStore:
    """Checkpoints of one decomposition, with what must agree for a run to be resumed from them."""

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
        """Raise what goes wrong inside Orbax as an error that names the directory."""
        try:
            yield
        except Exception as error:
            said = next(iter(str(error).splitlines()), "")[:200]
            raise OSError(
                f"the checkpoints in {self._directory} cannot be {what} ({type(error).__name__}: {said}); remove what "
                "is damaged there to go on from an older one or from the start, or use another directory"
            ) from error

    def load(self) -> Saved | None:
        """The latest point, if there is one.

        Raises:
            ValueError: it is of other settings; says which.
        OSError: it cannot be read.
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
        """Write a point; returns when it is committed."""
        tree = {f.name: np.asarray(getattr(saved, f.name)) for f in dataclasses.fields(saved) if f.name != "state"}
        tree |= {f"state_{k}": array for k, array in enumerate(saved.state)}
        with self._naming("written"):
            self._checkpointer.save(len(saved.losses), tree, custom_metadata=self._settings, overwrite=True)

    def close(self) -> None:
        """Let go of the directory."""
        self._checkpointer.close()


ROUNDING = 1e-5
"""Relative difference up to which two figures of the same rows agree, computed on other devices."""


def _same(old: Any, new: Any) -> bool:
    """Whether two settings are equal, lists of figures up to `ROUNDING`."""
    if isinstance(new, list) and isinstance(old, list) and all(isinstance(x, float) for x in [*new, *old]):
        return len(old) == len(new) and bool(np.allclose(old, new, rtol=ROUNDING, atol=0))
    return bool(old == new)
