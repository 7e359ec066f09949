"""Real text without a network: what the standard library says about itself, by module, read as files.

Each class is a module of the library, its texts the first paragraphs of the docstrings in its source; the last class is
the language itself, paragraphs of the topics that ``help()`` prints. Sources are parsed, not imported, so that no text
is inherited from elsewhere and no module is needed that this Python was built without.
"""

import ast
import pathlib
import sysconfig
from collections.abc import Iterator

import numpy as np

MODULES = ("asyncio", "email", "logging", "multiprocessing", "tkinter")
NAMES = (*MODULES, "the language")


def corpus(per_class: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """At most ``per_class`` texts of every class, no two alike, and their classes; shuffled."""
    own = [list(dict.fromkeys(filter(_is_prose, found))) for found in (*map(_docstrings, MODULES), _topics())]
    shared = {text for i, texts in enumerate(own) for other in own[:i] for text in set(texts) & set(other)}
    rng = np.random.default_rng(seed)
    pairs = [
        (text, label)
        for label, texts in enumerate(own)
        for text in rng.permutation([text for text in texts if text not in shared])[:per_class]
    ]
    order = rng.permutation(len(pairs))
    return [str(pairs[i][0]) for i in order], np.array([pairs[i][1] for i in order], np.int32)


def _docstrings(module: str) -> Iterator[str]:
    """The first paragraph of every docstring in a module's source and its submodules'."""
    for file in sorted((pathlib.Path(sysconfig.get_path("stdlib")) / module).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield _one_line((ast.get_docstring(node) or "").split("\n\n")[0])


def _topics() -> Iterator[str]:
    """The paragraphs of the language reference that Python ships."""
    from pydoc_data.topics import topics

    for topic in topics.values():
        yield from map(_one_line, topic.split("\n\n"))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _is_prose(text: str) -> bool:
    """No grammar, no list entry, no example, nothing shorter than a short sentence."""
    return len(text) >= 30 and text[0].isalpha() and not any(mark in text for mark in (" = ", "::", "***", ">>>"))
