"""The layer and kind of a parameter, inferred from its name.

Names differ between frameworks but share words: a path with ``layer_3/attention/query`` is attention of layer 3 in all
of them. For a name without such words, the layer is the outermost module and the kind is "other".
"""

import dataclasses
import re
from typing import Any

import numpy as np
from jaxtyping import Float

from npeff_jax._parameters import ParameterLayout

# In this order, the first that matches: a layer norm inside an attention block is a norm, and an attention's output
# dense layer is attention.
_KINDS = (
    ("norm", r"norm|layernorm|batchnorm|groupnorm|rmsnorm|ln|ln\d+|bn|bn\d+|normalization"),
    ("embedding", r"embed|embedding|embeddings|wte|wpe|patch|cls|pos|token"),
    ("attention", r"attn|attention|self|query|key|value|qkv|q|k|v|[qkvo]proj|[qkvo]lin|multihead\w*"),
    ("feed-forward", r"mlp|ffn|ff|feedforward|intermediate|fc|fc\d+|[wc]?fc|ffwd|lin\d"),
    ("head", r"head|heads|classifier|logits|score|unembed|preclassifier|pooler|lmhead"),
    ("convolution", r"conv|conv\d+|convolution|downsample|shortcut|stem"),
    ("dense", r"dense|linear|output|proj|projection"),
)
_COLUMNS = ("embedding", "convolution", "attention", "feed-forward", "dense", "norm", "head", "other")
_BLOCK = re.compile(r"(?:layers?|blocks?|h|stages?|encoderblock|resblock|resnetblock)$")


@dataclasses.dataclass(frozen=True)
class Places:
    """The rows and columns of the table "where it lives", and the cell of every parameter.

    Attributes:
        layers: names of the rows, in order of computation as far as it follows from the names.
        kinds: names of the columns.
        cells: (row, column) per parameter of the layout.
        sizes: (layers, kinds), number of explained parameters per cell.
    """

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    cells: tuple[tuple[int, int], ...]
    sizes: Float[np.ndarray, "layers kinds"]

    def table(self, per_array: Float[np.ndarray, "arrays"]) -> Float[np.ndarray, "layers kinds"]:
        """Sum one number per parameter array by layer and kind."""
        summed = np.zeros((len(self.layers), len(self.kinds)))
        np.add.at(summed, tuple(np.array(self.cells).T), per_array)
        return summed


def places_of(layout: ParameterLayout) -> Places:
    """Return the layers and kinds of the parameters of ``layout``."""
    found = [(layer_of(p.name), kind_of(p.name)) for p in layout.parameters]
    layers = sorted({layer for layer, _ in found}, key=_depth)
    present = {kind for _, kind in found}
    kinds = [kind for kind in _COLUMNS if kind in present]
    cells = tuple((layers.index(layer), kinds.index(kind)) for layer, kind in found)
    places = Places(tuple(layers), tuple(kinds), cells, np.zeros((len(layers), len(kinds))))
    return dataclasses.replace(places, sizes=places.table(np.array([p.size for p in layout.parameters], float)))


def kind_of(name: str) -> str:
    """Return the kind of a parameter: attention, feed-forward, embedding, norm, head, convolution, dense or other."""
    modules = name.split("/")[:-1] or [name]  # the leaf's own name (kernel, w, q) does not tell the kind
    for part in reversed(modules):
        words = _words(part)
        for kind, pattern in _KINDS[:-1]:
            if any(re.fullmatch(pattern, word) for word in words):
                return kind
    if any(re.fullmatch(_KINDS[-1][1], word) for word in _words("/".join(modules))):
        return "feed-forward" if _counted(name) else "dense"  # a block's dense layers outside of its attention
    return "other"


def layer_of(name: str) -> str:
    """Return the layer of a parameter: ``layer 3`` where its path counts layers, else its outermost module."""
    counted = _counted(name)
    if counted:
        return ", ".join(counted[:2])
    parts = name.split("/")
    named = [part for part in parts[:-1] if part.lower() not in ("params", "bert", "model", "transformer", "encoder")]
    outermost = named[0] if named else parts[0]
    embeds = outermost.lower().startswith("embed") or kind_of(outermost + "/w") == "embedding"
    return "embeddings" if embeds else outermost


def _counted(name: str) -> list[str]:
    parts = name.split("/")
    counted: list[str] = []
    for place, part in enumerate(parts[:-1]):
        joined = re.fullmatch(r"([A-Za-z]+?(?:_?[A-Za-z]+)*)[_.]?(\d+)", part)
        previous = parts[place - 1].lower() if place else ""
        if part.isdigit() and place and _BLOCK.search(previous.replace("_", "")):
            counted.append(f"{_singular(previous)} {part}")
        elif part.isdigit() and place and re.fullmatch(r"[a-z_]+\d+", previous) and counted:
            counted.append(f"block {part}")  # stages of a ResNet: layer1/0
        elif joined and _BLOCK.search(joined[1].lower().replace("_", "")):
            counted.append(f"{_singular(joined[1].lower().split('_')[-1])} {joined[2]}")
    return counted


def _singular(word: str) -> str:
    return {"h": "layer"}.get(word, word.rstrip("s"))


def _words(part: str) -> list[str]:
    """Split a name such as ``LayerNorm_0`` or ``layer_norm`` into lower-case words, with the joined name as well."""
    pieces = [word for word in re.split(r"[/_.\-]+|\s", part) if word]
    camel = [word for piece in pieces for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+\d*|\d+", piece)]
    return [word.lower() for word in [*camel, *pieces, "".join(pieces)]]


def _depth(layer: str) -> tuple[Any, ...]:
    """Return a sort key of a layer: embeddings, convolutions, numbered layers (by number), dense layers, heads."""
    counted = re.match(r"(layer|block|stage)s? \d", layer)
    order = {"embedding": 0, "convolution": 1, "norm": 1, "dense": 3, "head": 5}
    rank = 2 if counted else order.get(kind_of(layer + "/w"), 2)
    if layer == "pooler":
        rank = 4
    if layer.lower().startswith(("stem", "conv_init", "patch")):
        rank = 0
    return rank, [int(number) for number in re.findall(r"\d+", layer)], layer
