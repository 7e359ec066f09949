"""Progress of long work: a bar for people, JSON lines for machines."""

import io
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from tqdm.auto import tqdm

Progress = bool | io.TextIOBase
"""True: a bar, on terminals and in notebooks. False: nothing. A text stream: one JSON object per line."""


class Advance(Protocol):
    """A function that reports ``amount`` more units as done, with values to show beside the count."""

    def __call__(self, amount: int, /, **shown: Any) -> None: ...


def check_progress(progress: Any) -> None:
    """Raise unless ``progress`` is True, False or a text stream.

    Raises:
        TypeError: If it is something else.
    """
    stream = all(callable(getattr(progress, name, None)) for name in ("write", "flush"))
    if not (isinstance(progress, bool | np.bool_) or stream):
        raise TypeError(f"progress={progress!r} is a {type(progress).__name__}; pass True, False or a text stream")


@contextmanager
def progress_bar(progress: Progress, description: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show progress over ``total`` units, of which ``done`` were done by an earlier run; rates exclude those.

    Yields:
        A function to call with the number of units just finished.
    """
    check_progress(progress)
    if isinstance(progress, bool | np.bool_):
        # disable=None: no bar where the output is not a terminal, so that logs stay readable. A program without a
        # console (pythonw, some services) has no stderr at all.
        hidden = True if not progress or sys.stderr is None else None
        bar = tqdm(total=total, desc=description, unit=unit, initial=done, disable=hidden)

        def advance(amount: int, /, **shown: Any) -> None:
            if shown:
                bar.set_postfix({name: _short(value) for name, value in shown.items()}, refresh=False)
            bar.update(amount)

        with bar:
            yield advance
        return

    start, count = time.monotonic(), 0

    def write(amount: int, /, **shown: Any) -> None:
        nonlocal count
        count += amount
        rate = count / max(time.monotonic() - start, 1e-9)
        line = {"stage": description, "done": done + count, "total": total, "unit": unit, "per_second": rate}
        line["seconds_left"] = (total - done - count) / rate if rate else None
        progress.write(json.dumps(line | shown) + "\n")
        progress.flush()

    yield write


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
