"""Which vectors on the logits are pulled back to an example's rows, and what was left out of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from npeff_jax._types import Cotangents, Logits
from npeff_jax.models import Output
from npeff_jax.pefs._representation import Diagonal, LowRank, Representation, RowBasis, Sampled


class Pullback(NamedTuple):
    """Vectors on the logits, divided by ``scale``.

    Attributes:
        rows: one a row of the PEF. Those of dropped classes are zero and come last.
        scale: their largest entry before the division. A confident prediction has tiny cotangents, and a Fisher's norm
            is of fourth order in them: at a margin of 60 it is below the smallest float32.
        n_rows: how many are in use.
        lost_mass: probability of the dropped classes.
        probe: a random combination of the dropped rows, with signs. The expected squared norm of what it pulls back to
            is the trace that was lost. Absent where nothing can be lost.
    """

    rows: Cotangents
    scale: Float[Array, ""]
    n_rows: Int[Array, ""]
    lost_mass: Float[Array, ""]
    probe: Float[Array, "C"] | None


def drops_classes(representation: Representation) -> bool:
    """Whether some classes may get no row."""
    if isinstance(representation, LowRank):
        by_count = representation.rows is RowBasis.CLASSES and representation.max_rows is not None
        return representation.min_probability > 0 or by_count
    return isinstance(representation, Diagonal) and representation.min_probability > 0


def counts_classes(representation: Representation) -> bool:
    """Whether a batch may need fewer rows than the most there can be."""
    return drops_classes(representation) and getattr(representation, "sketch", None) is None


def uses_sketch(output: Output, representation: Representation, n_classes: int) -> bool:
    """Whether the principal rows come from a range finder: where that takes fewer gradients than all rows."""
    sketch = representation.sketch if isinstance(representation, LowRank) else None
    return sketch is not None and sketch < _n_exact(output, representation, n_classes)


def n_cotangents(output: Output, representation: Representation, n_classes: int) -> int:
    """The most vectors that are pulled back for one example: the dense rows it may take."""
    if isinstance(representation, Sampled):
        return representation.n_samples
    if isinstance(representation, LowRank) and uses_sketch(output, representation, n_classes):
        return representation.sketch  # type: ignore[return-value]
    return _n_exact(output, representation, n_classes)


def cotangents(output: Output, representation: Representation, logits: Logits, key: jax.Array, most: int) -> Pullback:
    """The vectors to pull back for one example.

    Args:
        output: what the logits mean.
        representation: which rows.
        logits: of the example.
        key: the example's own.
        most: where classes are dropped, how many rows there is room for: at least the number of `kept_classes`.
    """
    mass, probe = jnp.zeros(()), None
    if isinstance(representation, Sampled):
        rows = output.sample(key, logits, representation.n_samples)
        n_rows = jnp.asarray(representation.n_samples)
    elif drops_classes(representation):
        p, kept = output.probabilities(logits), kept_classes(output, representation, logits)
        n_rows, mass = jnp.sum(kept), jnp.sum(jnp.where(kept, 0.0, p))
        likeliest = jax.lax.top_k(p, most)[1]  # of equals, the lower class
        used = jnp.arange(most) < n_rows
        rows = output.weighted(logits, jax.nn.one_hot(likeliest, p.size) * used[:, None])
        signs = jax.random.rademacher(key, (1, p.size), logits.dtype)
        (probe,) = output.weighted(logits, jnp.where(kept, 0.0, signs))
    else:
        rows = output.class_rows(logits) if _has_class_rows(representation) else output.factor(logits)
        n_rows = jnp.asarray(rows.shape[0])
    return scaled(rows, n_rows, mass, probe)


def unit_of(rows: Cotangents) -> Float[Array, ""]:
    """The largest absolute entry, 1 where all are zero: a Fisher of zero has nothing to scale."""
    largest = jnp.max(jnp.abs(rows))
    return jnp.where(largest > 0, largest, 1.0)


def scaled_cotangents(rows: Cotangents) -> tuple[Cotangents, Float[Array, ""]]:
    """Return cotangents divided by their largest absolute entry, and that entry (1 where all are zero)."""
    scale = unit_of(rows)
    return rows / scale, scale


def scaled(
    rows: Cotangents, n_rows: Int[Array, ""], lost_mass: Float[Array, ""], probe: Float[Array, "C"] | None
) -> Pullback:
    """Divided by the largest entry."""
    scale = unit_of(rows)
    return Pullback(rows / scale, scale, n_rows, lost_mass, None if probe is None else probe / scale)


def kept_classes(output: Output, representation: Representation, logits: Logits) -> Bool[Array, "C"]:
    """Which classes get a row, or a part in one: those above the threshold, at most as many as there may be.

    Where every class is below the threshold, the likeliest stands for the example.
    """
    p = output.probabilities(logits)
    kept = p >= getattr(representation, "min_probability", 0.0)
    likeliest = jax.lax.top_k(p, _most_classes(representation, p.size))[1]
    return kept & jnp.zeros_like(kept).at[likeliest].set(True) | (jnp.arange(p.size) == likeliest[0])


def _n_exact(output: Output, representation: Representation, n_classes: int) -> int:
    """Rows without a range finder."""
    if drops_classes(representation):
        return _most_classes(representation, n_classes)
    kind = output.class_rows if _has_class_rows(representation) else output.factor
    return jax.eval_shape(kind, jax.ShapeDtypeStruct((n_classes,), jnp.float32)).shape[0]


def _has_class_rows(representation: Representation) -> bool:
    return isinstance(representation, LowRank) and representation.rows is RowBasis.CLASSES


def _most_classes(representation: Representation, n_classes: int) -> int:
    """At most 1/ε classes can have a probability of at least ε: no gradient is computed for more."""
    most = n_classes
    if isinstance(representation, LowRank | Diagonal) and representation.min_probability > 0:
        most = min(most, int(1 / representation.min_probability) + 1)  # one to spare for rounding
    if isinstance(representation, LowRank) and representation.rows is RowBasis.CLASSES:
        most = min(most, representation.max_rows or most)
    return most
