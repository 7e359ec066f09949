"""The command line, ``npeff``."""

from npeff_jax.cli._main import main as main
