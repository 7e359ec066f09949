"""``npeff``: reads the command, runs it, turns errors into sentences and exit codes."""

import os
import sys
from collections.abc import Sequence

DESCRIPTION = """Explain a trained network's predictions through its parameters (NPEFF).

The path: plan what it costs, compute PEFs, decompose them, fit held-out examples, perturb the model along the
components, write a report. Each command reads what the one before wrote, and "npeff COMMAND --help" says how.
Start with "npeff demo digits". Exit codes: 0 done, 1 failed, 2 a wrong command or wrong input. With --debug an error
shows where it came from.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: as after the program's name; those of this process by default.

    Returns:
        The exit code: 0 done, 1 failed, 2 a wrong command or wrong input.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        _run([word for word in arguments if word != "--debug"])
    except SystemExit as done:  # tyro's, after --help or a wrong command
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("npeff: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        wrong_input = isinstance(error, ValueError | FileNotFoundError | FileExistsError | IndexError)
        print(f"npeff: {_sentence(error)}", file=sys.stderr)
        return 2 if wrong_input else 1
    return 0


def _sentence(error: Exception) -> str:
    """The error in one line; what a library raises without a message is called by its type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text or 'no message'}"


def _run(arguments: list[str]) -> None:
    import tyro

    from npeff_jax.cli import _demo, _look, _plan, _record, _stages, _verify

    app, demos = tyro.extras.SubcommandApp(), tyro.extras.SubcommandApp()
    demos.command(_demo.digits)
    demos.command(_demo.tracr)
    app.command(_verify.verify)
    app.command(_plan.plan)
    for command in (_stages.pefs, _stages.decompose, _stages.fit, _stages.expand, _stages.perturb):
        app.command(command)
    for command in (_look.report, _look.export, _record.rerun):
        app.command(command)
    app.command(demos, name="demo", help="From nothing to a report, on data that needs no download.")
    plain = (tyro.conf.EnumChoicesFromValues, tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    app.cli(prog="npeff", description=DESCRIPTION, args=arguments, config=plain)
