"""One writer a directory."""

import os
from pathlib import Path
from typing import Any

NAME = ".lock"


class WriterLock:
    """Held while a directory is written. The system lets go of it when its process ends, however that happens."""

    def __init__(self, path: Path) -> None:
        """Take the lock of the directory ``path``.

        Raises:
            FileExistsError: another process, or another run of this one, is writing there.
        """
        self._file = path / NAME
        self._handle: Any = None
        while self._handle is None:
            handle = self._file.open("a")
            if not _try_lock(handle):
                handle.close()
                raise FileExistsError(f"{path} is being written by another run; wait for it, or choose another path")
            # The holder removes the file when it is done: what was locked may be a file that is no longer there.
            if self._file.exists() and self._file.stat().st_ino == os.fstat(handle.fileno()).st_ino:
                self._handle = handle
            else:
                handle.close()

    def release(self) -> None:
        """Let go, leaving nothing behind."""
        self._file.unlink(missing_ok=True)
        self._handle.close()


def _try_lock(handle: Any) -> bool:
    try:
        import fcntl
    except ImportError:  # no such locks on this system: the last writer wins, as without
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
