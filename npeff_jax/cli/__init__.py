"""The command line, ``npeff``."""
