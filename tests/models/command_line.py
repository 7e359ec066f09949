"""A command as it would be typed in a folder, in this process: another one imports everything and compiles it again."""

import contextlib
import io
from typing import NamedTuple

from npeff_jax.cli import main


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(arguments, folder):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(arguments)
    return Done(code, out.getvalue(), error.getvalue())
