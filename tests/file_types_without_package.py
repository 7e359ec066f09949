"""A small network and a few types in place of the package magika, for tests of what is done with files."""

import json

import jax.numpy as jnp
import numpy as np

import npeff_jax as npeff
from npeff_jax.tasks import _file_types

NAMES = ("c", "html", "javascript", "matlab", "objectivec", "python", "txt")
_EXTENSIONS = {
    "c": ["c"],
    "html": ["html", "htm"],
    "javascript": ["js"],
    "matlab": ["m"],
    "objectivec": ["m", "mm"],
    "python": ["py"],
    "txt": ["TXT"],
    "a type that the network does not have": ["odd"],
}


def stand_in(monkeypatch, directory):
    """Let `file_types` find its facts about extensions in ``directory`` and its network here."""
    (directory / "config").mkdir()
    facts = {name: {"extensions": extensions} for name, extensions in _EXTENSIONS.items()}
    (directory / "config" / "content_types_kb.min.json").write_text(json.dumps(facts))
    monkeypatch.setattr(_file_types, "package_directory", lambda: directory)
    monkeypatch.setattr(_file_types, "file_type_network", network)


def network():
    """Logits of the seven types from the mean of a vector per byte."""
    random = np.random.default_rng(0)
    params = {
        "embedding": random.normal(size=(257, 16)).astype(np.float32),
        "classifier": random.normal(size=(16, 7)).astype(np.float32),
    }

    def logits_fn(params, window):
        return jnp.tanh(4 * params["embedding"][window].mean(0)) @ params["classifier"]

    return npeff.Model(logits_fn, params, label_names=NAMES)


def content(seed, size=300):
    """Lines of numbers that no other seed has."""
    words = np.random.default_rng(seed).integers(10**7, 10**8, size // 9)
    return "\n".join(map(str, words)).encode()
