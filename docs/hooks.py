"""Reference pages: a room's line ``[room: npeff_jax.pefs]`` becomes its docstring and every public name, in order."""

import importlib
import inspect
import re


def on_page_markdown(markdown: str, **_) -> str:
    """Called by MkDocs for each page."""
    return re.sub(r"^\[room: ([\w.]+)\]$", lambda found: _room(found[1]), markdown, flags=re.MULTILINE)


def _room(name: str) -> str:
    room = importlib.import_module(name)
    public = [
        attribute
        for attribute, value in sorted(vars(room).items())
        if not attribute.startswith("_") and not inspect.ismodule(value)
    ]
    shown = [attribute for attribute in public if inspect.isfunction(vars(room)[attribute])]
    shown = [attribute for attribute in public if inspect.isclass(vars(room)[attribute])] + shown
    return "\n\n".join([inspect.getdoc(room) or "", *(f"## {one}\n\n::: {name}.{one}" for one in shown)])
