"""Which vectors on the logits are pulled back to an example's rows, and what was left out of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from npeff_jax._types import Cotangents, Logits
from npeff_jax.models import Output
from npeff_jax.pefs._representation import Diagonal, LowRank, Representation, Rows, Sampled


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
        by_count = representation.rows is Rows.CLASSES and representation.max_rows is not None
        return representation.min_probability > 0 or by_count
    return isinstance(representation, Diagonal) and representation.min_probability > 0


def n_cotangents(output: Output, representation: Representation, n_classes: int) -> int:
    """How many vectors `cotangents` gives: the gradients an example costs."""
    if isinstance(representation, Sampled):
        return representation.n_samples
    if drops_classes(representation):
        return min(n_classes, _most_classes(representation, n_classes))
    kind = output.class_rows if _has_class_rows(representation) else output.factor
    return jax.eval_shape(kind, jax.ShapeDtypeStruct((n_classes,), jnp.float32)).shape[0]


def cotangents(output: Output, representation: Representation, logits: Logits, key: jax.Array) -> Pullback:
    """The vectors to pull back for one example. ``key`` is the example's own."""
    logits = logits.astype(jnp.float32)
    mass, probe = jnp.zeros(()), None
    if isinstance(representation, Sampled):
        rows = output.sample(key, logits, representation.n_samples)
        n_rows = jnp.asarray(representation.n_samples)
    elif drops_classes(representation):
        rows, n_rows, mass, probe = _probable_classes(output, representation, logits, key)
    else:
        rows = output.class_rows(logits) if _has_class_rows(representation) else output.factor(logits)
        n_rows = jnp.asarray(rows.shape[0])
    scale = jnp.max(jnp.abs(rows))
    scale = jnp.where(scale > 0, scale, 1.0)  # a Fisher of zero: nothing to scale
    return Pullback(rows / scale, scale, n_rows, mass, None if probe is None else probe / scale)


def _has_class_rows(representation: Representation) -> bool:
    return isinstance(representation, LowRank) and representation.rows is Rows.CLASSES


def _most_classes(representation: LowRank | Diagonal, n_classes: int) -> int:
    """At most 1/ε classes can have a probability of at least ε: no gradient is computed for more."""
    most = n_classes
    if representation.min_probability > 0:
        most = int(1 / representation.min_probability) + 1  # one to spare for rounding
    if isinstance(representation, LowRank) and representation.rows is Rows.CLASSES:
        most = min(most, representation.max_rows or most)
    return most


def _probable_classes(
    output: Output, representation: LowRank | Diagonal, logits: Logits, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Rows of the classes above the threshold, the most probable first, the others summed up in a probe."""
    p = output.probabilities(logits)
    order = jnp.argsort(-p, stable=True)
    most = min(p.size, _most_classes(representation, p.size))
    kept = (p[order] >= representation.min_probability) & (jnp.arange(p.size) < most)
    kept = kept.at[0].set(True)  # where every class is below the threshold, the likeliest stands for the example
    rows = output.class_rows(logits)[order]
    signs = jax.random.rademacher(key, (p.size,), rows.dtype)
    probe = jnp.where(kept, 0.0, signs) @ rows
    lost_mass = jnp.sum(jnp.where(kept, 0.0, p[order]))
    return jnp.where(kept[:most, None], rows[:most], 0.0), jnp.sum(kept), lost_mass, probe
