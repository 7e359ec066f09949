"""What identifies a set of examples, and the look at all of them before any long work."""

import hashlib
from collections.abc import Iterator

import jax
import numpy as np

from npeff_jax._checks import count_examples, is_source, slice_examples
from npeff_jax._types import Examples

CHUNK = 1024
"""Examples looked at together: a source is never in memory as a whole."""


def examples_digest(examples: Examples) -> str:
    """A digest of every value, shape and type, the same whether they come as arrays or from a source.

    Reads all examples once, and finds what would be found an hour late: values that are not finite.

    Raises:
        ValueError: an example has NaN or infinity in it; says which one, and where.
    """
    n = count_examples(examples)
    digests: dict[str, hashlib.blake2b] = {}
    for start, batch in _chunks(examples, n):
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if len(leaf) != min(CHUNK, n - start):
                raise ValueError(
                    f"the source has {n} examples, but slicing {start}:{start + CHUNK} gave {len(leaf)} in {name!r}; "
                    "its slices must have a leading axis over examples"
                )
            if np.issubdtype(leaf.dtype, np.inexact) and not np.isfinite(leaf).all():
                bad = start + int(np.flatnonzero(~np.isfinite(leaf).reshape(len(leaf), -1).all(1))[0])
                where = f" in leaf {name!r}" if name else ""
                raise ValueError(f"example {bad} has a value that is not finite{where}; clean or drop it")
            if name not in digests:
                digests[name] = hashlib.blake2b(f"{name}{leaf.shape[1:]}{leaf.dtype}".encode(), digest_size=16)
            digests[name].update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    whole = hashlib.blake2b(str(n).encode(), digest_size=16)
    for name in sorted(digests):
        whole.update(digests[name].digest())
    return whole.hexdigest()


def _chunks(examples: Examples, n: int) -> Iterator[tuple[int, Examples]]:
    if n == 0:
        kind = "source" if is_source(examples) else "pytree"
        raise ValueError(f"there are no examples in this {kind}; pass at least one")
    for start in range(0, n, CHUNK):
        yield start, slice_examples(examples, slice(start, min(start + CHUNK, n)))
