"""Leave-one-out attribution: the words of a text, or cells of an image, that a component's effect depends on.

A component moves the logits of example x, per unit of length along its direction g, by u(x) = J(x) g. The value of a
part is the share of this effect that is lost when the part is left out:

    lost = 1 − ⟨u(x), u(x without the part)⟩_S / ⟨u(x), u(x)⟩_S,

with S the Fisher of the output distribution at x, held fixed so that a change in confidence alone does not count.
Leave-one-out is used rather than the gradient with respect to token embeddings because it only calls the model, so
works for any architecture and for images; it needs no baseline and does not saturate (a gradient is small where one
word already decides the prediction).
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from npeff_jax._examples import count_examples, slice_examples
from npeff_jax._progress import Progress, progress_bar
from npeff_jax._types import Examples, PyTree
from npeff_jax.evaluation import top_examples
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.perturbation import component_direction
from npeff_jax.report._component import Marks

_SPANS = 64
"""Maximum number of parts per text: in longer texts, neighbouring words are left out together."""

_BATCH = 16
"""Examples with a part left out per call: fixed, so that the call compiles once; small, to waste little on padding."""

_WORD = re.compile(r"\S+")


class NoPartsError(ValueError):
    """The inputs are neither texts nor images, so that no part can be left out."""


def mark_examples(
    model: Model,
    decomposition: Decomposition,
    coefficients: Float[np.ndarray, "n r"],
    examples: Examples,
    *,
    texts: Sequence[Any] | None = None,
    encode: Callable[..., Examples] | None = None,
    placeholder: str = "",
    n_top: int = 2,
    grid: int = 8,
    progress: Progress = True,
) -> list[tuple[Marks, ...]]:
    """Mark which parts of a component's top examples its effect depends on, for `write_report`, by leave-one-out.

    A word is deleted from the text, which is encoded again; a cell of an image is replaced by the image's mean colour.

    Args:
        model: the model that was decomposed.
        decomposition: a decomposition of low-rank PEFs.
        coefficients: (n, r), coefficients of ``examples``.
        examples: the model's inputs. Without ``texts`` they are images: one array, (n, height, width) or with channels
            first or last.
        texts: n strings, or pairs of strings, that ``examples`` were encoded from.
        encode: function from lists of texts (and of second texts) to examples, such as `models.huggingface_processor`.
        placeholder: replacement for deleted words, such as a tokenizer's mask token; empty by default. A model of
            fixed-length texts needs one.
        n_top: number of top examples to mark per component.
        grid: cells along the longer side of an image.
        progress: a bar, a stream for JSON lines, or False.

    Returns:
        Per component, the marks of its top examples.

    Raises:
        NoPartsError: (a `ValueError`) If there are no texts and the inputs are not images.
        ValueError: If there are texts without ``encode``, another number of texts, or diagonal components.
    """
    n = count_examples(examples)
    if (texts is None) != (encode is None):
        raise ValueError("texts and encode go together: the texts, and what turns them into the model's inputs")
    if texts is not None and len(texts) != n:
        raise ValueError(f"there are {len(texts)} texts for {n} examples; expected one for each")
    if len(coefficients) != n:
        raise ValueError(
            f"there are coefficients of {len(coefficients)} examples, and {n} examples; pass those of them"
        )
    if n_top < 1 or grid < 2:
        raise ValueError(f"n_top={n_top} and grid={grid}; expected at least 1 and at least 2")
    if texts is None:
        _image_axes(_one(examples, 0))
    lost = _lost(model)
    made = []
    with progress_bar(progress, "marks", decomposition.n_components, "component") as advance:
        for component in range(decomposition.n_components):
            direction = component_direction(model, decomposition, component)
            top = np.asarray(top_examples(coefficients, component, n_top))
            top = top[np.asarray(coefficients)[top, component] > 0]
            of = functools.partial(lost, model.params, direction)
            if texts is None or encode is None:
                made.append(tuple(_mark_image(of, _one(examples, int(i)), int(i), grid) for i in top))
            else:
                mark = functools.partial(_mark_text, of, encode=encode, placeholder=placeholder)
                made.append(tuple(mark(_one(examples, int(i)), texts[int(i)], int(i)) for i in top))
            advance(1)
    return made


def _lost(model: Model) -> Callable[..., np.ndarray]:
    """Return a function (params, direction, example, examples without a part) → lost share of the effect per part."""

    def effect(params: PyTree, direction: PyTree, example: PyTree) -> tuple[jax.Array, jax.Array]:
        logits, moved = jax.jvp(lambda p: model.logits_fn(p, example), (params,), (direction,))
        return logits.astype(jnp.float32), moved.astype(jnp.float32)

    @jax.jit
    def batch(params: PyTree, direction: PyTree, example: PyTree, without: PyTree) -> jax.Array:
        logits, moved = effect(params, direction, example)
        # S u as a Hessian-vector product of the KL divergence: works for any output family and forms no C × C matrix
        _, weighted = jax.jvp(jax.grad(lambda q: model.output.kl(logits, q)), (logits,), (moved,))
        others = jax.vmap(lambda part: effect(params, direction, part)[1] @ weighted)(without)
        squared = moved @ weighted
        return jnp.where(squared > 0, 1.0 - others / jnp.where(squared > 0, squared, 1.0), 0.0)

    def all_parts(params: PyTree, direction: PyTree, example: PyTree, without: PyTree) -> np.ndarray:
        count = count_examples(without)
        found = []
        for first in range(0, count, _BATCH):
            rows = np.minimum(np.arange(first, first + _BATCH), count - 1)  # pad by repeating the last: one compilation
            part = jax.tree.map(lambda leaf, rows=rows: leaf[rows], without)
            found.append(np.asarray(batch(params, direction, example, part)))
        return np.concatenate(found)[:count]

    return all_parts


def _mark_text(
    lost: Any, example: PyTree, text: Any, i: int, *, encode: Callable[..., Examples], placeholder: str
) -> Marks:
    segments = [text] if isinstance(text, str) else list(text)
    words = [(s, *match.span()) for s, segment in enumerate(segments) for match in _WORD.finditer(segment)]
    if not words:
        return Marks(i)
    size = -(-len(words) // _SPANS)
    spans, start = [], 0
    while start < len(words):  # neighbours of one segment
        stop = min(
            start + size, next((k for k in range(start, len(words)) if words[k][0] != words[start][0]), len(words))
        )
        spans.append((words[start][0], words[start][1], words[stop - 1][2]))
        start = stop
    columns: list[list[str]] = [[] for _ in segments]
    for segment, first, last in spans:
        for s, column in enumerate(columns):
            column.append(segments[s][:first] + placeholder + segments[s][last:] if s == segment else segments[s])
    values = lost(example, jax.tree.map(np.asarray, encode(*columns)))
    places = ((s, _units(segments[s], a), _units(segments[s], b)) for s, a, b in spans)
    return Marks(i, tuple((*place, float(value)) for place, value in zip(places, values)))


def _units(text: str, end: int) -> int:
    """Return the number of UTF-16 code units before position ``end``, as JavaScript counts positions."""
    return len(text[:end].encode("utf-16-le", "surrogatepass")) // 2


def _mark_image(lost: Any, example: PyTree, i: int, grid: int) -> Marks:
    down, across = _image_axes(example)
    leaves, structure = jax.tree.flatten(example)
    pixels = np.asarray(leaves[0])
    height, width = pixels.shape[down], pixels.shape[across]
    cell = max(1, -(-max(height, width) // grid))
    rows, columns = -(-height // cell), -(-width // cell)
    mean = pixels.mean(axis=(down, across), keepdims=True).astype(pixels.dtype)
    without = np.broadcast_to(pixels, (rows * columns, *pixels.shape)).copy()
    for place in range(rows * columns):
        where: list[Any] = [slice(None)] * pixels.ndim
        where[down] = slice(place // columns * cell, (place // columns + 1) * cell)
        where[across] = slice(place % columns * cell, (place % columns + 1) * cell)
        without[place][tuple(where)] = mean
    values = lost(example, jax.tree.unflatten(structure, [without])).reshape(rows, columns)
    return Marks(i, grid=tuple(tuple(float(value) for value in row) for row in values))


def _one(examples: Examples, i: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[0], slice_examples(examples, slice(i, i + 1)))


def _image_axes(example: PyTree) -> tuple[int, int]:
    """Return the axes of height and width of an image.

    Raises:
        NoPartsError: If the example is not an image.
    """
    leaves = jax.tree.leaves(example)
    shape = np.shape(leaves[0]) if len(leaves) == 1 else ()
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4)):
        return 0, 1
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return 1, 2
    raise NoPartsError(
        f"an example has {len(leaves)} arrays, the first of shape {np.shape(leaves[0]) if leaves else ()}; expected "
        "images, one array (height, width) with channels first or last. For texts pass texts= and encode="
    )
