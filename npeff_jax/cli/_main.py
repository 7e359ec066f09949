"""``npeff``: parses a command, runs it, and reports errors as sentences and exit codes."""

import contextlib
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from npeff_jax._extras import missing

COMMANDS = {
    "explain": "all of it: from a model and a data set to a report",
    "demo": "from nothing to a report, on data that needs no download",
    "plan": "what PEFs will cost in time and memory, and what --keep loses",
    "encode": "write examples as arrays: tokens, positions, drawn answers",
    "pefs": "compute per-example Fishers: how predictions react to parameters",
    "scan": "how many components: try several numbers, and what to take",
    "decompose": "decompose them into components that many examples share",
    "fit": "coefficients of held-out examples",
    "expand": "new components for other examples, the old ones frozen",
    "perturb": "move the model along components: does it really use them?",
    "report": "one HTML file to look at and to send to colleagues",
    "compare": "two runs: what is in both, what split, what vanished",
    "export": "the top examples of components as a table",
    "bundle": "components, report and a model card in one folder, to send or push",
    "rerun": "run a recorded command again",
}

HELP = """usage: npeff COMMAND [OPTIONS]

Explain a trained network's predictions through its parameters (NPEFF).

{commands}

"npeff COMMAND --help" says how; each command reads what the one before wrote.
Exit codes: 0 done, 1 failed, 2 a wrong command or wrong input. With --debug
an error shows where it came from; --version says what is installed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: arguments after the program's name; by default those of this process.

    Returns:
        The exit code: 0 for success, 1 for failure, 2 for a wrong command or input.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    words = [word for word in arguments if word != "--debug"]
    try:
        if words in ([], ["-h"], ["--help"]):
            print(HELP.format(commands="\n".join(f"  {name:<10} {told}" for name, told in COMMANDS.items())), end="")
            return 0 if words else 2
        if words == ["--version"]:
            print(_version())
            return 0
        _run(words)
    except SystemExit as done:  # from tyro, after --help or a wrong command
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except BrokenPipeError:  # the reader of the output exited, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("npeff: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        wrong_input = isinstance(error, ValueError | TypeError | IndexError | OSError | ImportError)
        print(f"npeff: {_sentence(error)}", file=sys.stderr)
        return 2 if wrong_input else 1
    return 0


def _sentence(error: Exception) -> str:
    """Return the error as one line; one not raised by this package is named by its type, with a hint to ``--debug``."""
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        text = missing("this command", error) or text
    if isinstance(error, OSError) and error.strerror:
        places = " → ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{places}: {error.strerror.lower()}" if places else error.strerror.lower()
    ours = isinstance(error, ValueError | TypeError | OSError | RuntimeError | ImportError) and _is_ours(error)
    if text and (ours or isinstance(error, ImportError)):
        return text
    return f"unforeseen: {text or 'no message'} ({type(error).__name__}); run again with --debug to see where"


def _is_ours(error: Exception) -> bool:
    """Return whether the error was raised in a file of this package, whose messages are complete sentences."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and str(Path(__file__).parents[1]) in frame.tb_frame.f_code.co_filename


def _version() -> str:
    import platform

    import jax

    from npeff_jax._version import __version__

    return f"npeff {__version__} (jax {jax.__version__}, Python {platform.python_version()})"


@contextlib.contextmanager
def _fitting_help(arguments: Sequence[str]) -> Iterator[None]:
    """Wrap lines of a command's help that are wider than the terminal."""
    if not {"-h", "--help"} & set(arguments):
        yield
        return
    written = io.StringIO()
    width = min(shutil.get_terminal_size().columns, 100)
    try:
        with contextlib.redirect_stdout(written):
            yield
    finally:
        for line in written.getvalue().splitlines():
            print(line.rstrip() if len(line) <= width else textwrap.fill(line, width))


def _run(arguments: list[str]) -> None:
    import tyro

    from npeff_jax.cli import _compare, _demos, _explain, _files_demo, _look, _record, _repair, _stages, _verify

    app, demos = tyro.extras.SubcommandApp(), tyro.extras.SubcommandApp()
    demos.command(_demos.digits)
    demos.command(_demos.tracr)
    demos.command(_demos.shortcut)
    demos.command(_files_demo.files)
    app.command(_explain.explain)
    app.command(_verify.verify)
    for command in (_stages.plan, _stages.encode, _stages.pefs, _stages.decompose):
        app.command(command)
    for command in (_stages.fit, _stages.expand, _stages.perturb, _repair.repair, _compare.scan, _compare.compare):
        app.command(command)
    for command in (_look.report, _look.export, _look.bundle, _record.rerun):
        app.command(command)
    app.command(demos, name="demo", help="From nothing to a report, on data that needs no download.")
    plain = (tyro.conf.EnumChoicesFromValues, tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    with _fitting_help(arguments):
        app.cli(prog="npeff", args=arguments, config=plain)
