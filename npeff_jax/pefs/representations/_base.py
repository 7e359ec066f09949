"""The protocol of representations: cotangents on the logits, whose pull-backs are the rows of an example."""

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
    """Input of a representation for one example.

    Attributes:
        logits: logits in float32.
        output: the model's output family.
        label: label of the example; −1 without labels.
        key: random key of the example, independent of batches.
        room: maximum number of rows.
        pull: function v ↦ Jᵀ v, from logits to explained parameters, for representations that depend on gradients.
        push: function u ↦ J u, from explained parameters to logits.
    """

    logits: Logits
    output: Output
    label: Int[Array, ""]
    key: jax.Array
    room: int
    pull: Callable[[Logits], tuple[jax.Array, ...]]
    push: Callable[[tuple[jax.Array, ...]], Logits]


class Pullback(NamedTuple):
    """Cotangents on the logits, divided by their largest absolute entry ``scale``.

    Attributes:
        rows: (c, C), one cotangent per row of the PEF; unused ones are zero and come last.
        scale: largest absolute entry before the division. Confident predictions have tiny cotangents, and the norm of a
            Fisher is of fourth order in them: at a margin of 60 it is below the smallest float32.
        n_rows: number of rows in use.
        lost_mass: probability of the classes without a row.
        probe: a combination of the left-out rows with random signs. The expected squared norm of its pull-back is the
            lost trace. None if nothing is left out.
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
        """Scale ``rows``; by default all of them are in use."""
        rows, scale = scaled_cotangents(jnp.asarray(rows, jnp.float32))
        used = jnp.asarray(rows.shape[0] if n_rows is None else n_rows, jnp.int32)
        probe = None if probe is None else jnp.asarray(probe, jnp.float32) / scale
        return cls(rows, scale, used, jnp.asarray(lost_mass, jnp.float32), probe)


class Rotation(NamedTuple):
    """Rotation of an example's rows, computed from their Gram matrix.

    Attributes:
        matrix: (c, c), orthogonal matrix to multiply the rows by, with wanted rows first; None for no rotation.
        gram: (c, c), Gram matrix of the rotated rows.
        n_rows: number of wanted rows.
    """

    matrix: Any
    gram: Any
    n_rows: Any


class Representation(abc.ABC):
    """Protocol of the rows a_1..a_c that represent the Fisher F = Σ a aᵀ of one example.

    A subclass is a frozen dataclass with `n_rows` and `cotangents`. Its rows are selected, stored, planned and
    decomposed like those of the shipped representations. Its name and fields are recorded with the PEFs.

    Attributes:
        kind: low-rank or diagonal. For `FisherKind.DIAGONAL` the squares of the rows are summed: f = Σ a².
        needs_labels: whether `cotangents` uses the example's label.
        seed: seed of the random keys of the examples.

    Examples:
        The empirical Fisher, from the gradient of the loss at the label:

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
        """Return the maximum number of cotangents per example."""

    @abc.abstractmethod
    def cotangents(self, at: Prediction) -> Cotangents | Pullback:
        """Return the cotangents of one example, (c, C) with c at most ``at.room``. Pure: it is jitted and mapped.

        Return a `Pullback` instead of an array to mark unused rows and to report what was left out.
        """

    def rows_needed(self, output: Output, logits: Logits) -> Int[Array, ""] | None:
        """Return how many cotangents an example with these logits needs, or None for always all.

        A batch is then computed with room for the largest number needed in it.
        """
        return None

    def rotation(self, gram: Any, n_rows: Any, xp: Any) -> Rotation:
        """Return the rotation of an example's rows, computed from their Gram matrix; by default none.

        Args:
            gram: (c, c), in float64 on the host.
            n_rows: number of rows in use.
            xp: ``numpy``, or ``jax.numpy`` in compiled programs.
        """
        return Rotation(None, gram, n_rows)

    @property
    def recorded(self) -> dict[str, Any]:
        """JSON-serialisable record of name and fields, stored with the PEFs."""
        return describe(self)


def scaled_cotangents(rows: Cotangents) -> tuple[Cotangents, Float[Array, ""]]:
    """Return cotangents divided by their largest absolute entry, and that entry (1 if all are zero)."""
    largest = jnp.max(jnp.abs(rows))
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return rows / scale, scale
