"""Lines that stand for more: ``[room: npeff_jax.pefs]`` for a room's docstring and every public name, in order;
``[picture: digits]`` for a picture of the gallery with its command.
"""

import importlib
import importlib.util
import inspect
import pathlib
import re


def on_page_markdown(markdown: str, **_) -> str:
    """Called by MkDocs for each page."""
    markdown = re.sub(r"^\[room: ([\w.]+)\]$", lambda found: _room(found[1]), markdown, flags=re.MULTILINE)
    return re.sub(r"^\[picture: (\w+)\]$", lambda found: _gallery().shown(found[1]), markdown, flags=re.MULTILINE)


def _gallery():
    spec = importlib.util.spec_from_file_location("gallery", pathlib.Path(__file__).with_name("gallery.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
