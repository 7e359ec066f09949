"""The protocol of a representation: cotangents on the logits, whose pull-backs are an example's rows."""

import abc
import enum
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from npeff_jax._identity import describe
from npeff_jax._types import Cotangents, Logits
from npeff_jax.models import Output


class FisherKind(enum.Enum):
    """The two flavours of NPEFF."""

    LOW_RANK = "low_rank"
    DIAGONAL = "diagonal"


class Prediction(NamedTuple):
    """What a representation is given of one example.

    Attributes:
        logits: in float32.
        output: the model's output family.
        label: the example's, -1 where there are no labels.
        key: the example's own, the same in every batch.
        room: how many rows there is room for.
        pull: Jᵀ, from the logits to the explained parameters, for representations that look at the parameters.
        push: J.
    """

    logits: Logits
    output: Output
    label: Int[Array, ""]
    key: jax.Array
    room: int
    pull: Callable[[Logits], tuple[jax.Array, ...]]
    push: Callable[[tuple[jax.Array, ...]], Logits]


class Pullback(NamedTuple):
    """Cotangents on the logits, divided by ``scale``: what `scaled` makes.

    Attributes:
        rows: one per row of the PEF. Those that are not in use are zero and come last.
        scale: their largest absolute entry before the division. A confident prediction has tiny cotangents, and the
            norm of a Fisher is of fourth order in them: at a margin of 60 it is below the smallest float32.
        n_rows: how many are in use.
        lost_mass: probability of the classes that have no row.
        probe: a random combination of the rows that were left out, with signs. The expected squared norm of what it
            pulls back to is the trace that was lost. None where nothing can be lost.
    """

    rows: Cotangents
    scale: Float[Array, ""]
    n_rows: Int[Array, ""]
    lost_mass: Float[Array, ""]
    probe: Float[Array, "C"] | None

    @classmethod
    def of(
        cls,
        rows: Cotangents,
        n_rows: Int[Array, ""] | int | None = None,
        lost_mass: Float[Array, ""] | float = 0.0,
        probe: Float[Array, "C"] | None = None,
    ) -> "Pullback":
        """Scale ``rows``; all of them are in use where ``n_rows`` is not given."""
        rows, scale = scaled_cotangents(jnp.asarray(rows, jnp.float32))
        used = jnp.asarray(rows.shape[0] if n_rows is None else n_rows, jnp.int32)
        probe = None if probe is None else jnp.asarray(probe, jnp.float32) / scale
        return cls(rows, scale, used, jnp.asarray(lost_mass, jnp.float32), probe)


class Rotation(NamedTuple):
    """What a small Gram matrix says about an example's rows.

    Attributes:
        matrix: (c, c) to multiply the rows with, the wanted ones first; None to leave them as they are.
        gram: (c, c), of the rows then.
        n_rows: how many of them are wanted.
    """

    matrix: Any
    gram: Any
    n_rows: Any


class Representation(abc.ABC):
    """Which rows a_1..a_c stand for the Fisher F = Σ a aᵀ of one example.

    An own one is a frozen dataclass with `n_rows` and `cotangents`: what it pulls back is selected, stored, planned and
    decomposed as the shipped ones are. Its fields and its name are recorded with the PEFs.

    Attributes:
        kind: the flavour. For `FisherKind.DIAGONAL` the squares of the rows are summed: f = Σ a².
        needs_labels: whether `cotangents` looks at the example's label.
        seed: behind each example's key.

    Examples:
        The empirical Fisher, of the gradient of the loss at the label:

        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Empirical(Representation):
        ...     needs_labels = True
        ...
        ...     def n_rows(self, output, n_classes):
        ...         return 1
        ...
        ...     def cotangents(self, at):
        ...         return (jax.nn.softmax(at.logits) - jax.nn.one_hot(at.label, at.logits.size))[None]
    """

    kind: ClassVar[FisherKind] = FisherKind.LOW_RANK
    needs_labels: ClassVar[bool] = False
    seed: int = 0

    @abc.abstractmethod
    def n_rows(self, output: Output, n_classes: int) -> int:
        """Return the most cotangents that are pulled back for one example."""

    @abc.abstractmethod
    def cotangents(self, at: Prediction) -> Cotangents | Pullback:
        """Return the cotangents of one example, (c, C) with c at most ``at.room``; pure, it is jitted and mapped.

        A `Pullback` says more than an array: rows that are not in use, and what was left out.
        """

    def rows_needed(self, output: Output, logits: Logits) -> Int[Array, ""] | None:
        """Return how many cotangents an example with these logits needs, or None if always all.

        With it a batch is computed with room for the example that needs most.
        """
        return None

    def rotation(self, gram: Any, n_rows: Any, xp: Any) -> Rotation:
        """Return the rotation of an example's rows, from their Gram matrix: by default they are left as they are.

        Args:
            gram: (c, c), in float64 on the host.
            n_rows: how many of the rows are in use.
            xp: ``numpy``, or ``jax.numpy`` in `pef_rows`.
        """
        return Rotation(None, gram, n_rows)

    @property
    def recorded(self) -> dict[str, Any]:
        """What is written down with the PEFs, as JSON: the name and the fields."""
        return describe(self)


def scaled_cotangents(rows: Cotangents) -> tuple[Cotangents, Float[Array, ""]]:
    """Return cotangents divided by their largest absolute entry, and that entry (1 where all are zero)."""
    largest = jnp.max(jnp.abs(rows))
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return rows / scale, scale
