"""Trust-region moves in the span of components, from the loss gradient under a KL budget: repairs and forgetting.

Target examples should get their labels (a repair) or lose them (forgetting) while the predictions on other examples
stay. With G the directions, L the mean over the target examples of −log p_y (repair) or −log(1 − p_y) (forgetting),
v = G ∇L, and M = G F Gᵀ with F the mean Fisher of the others,

    min_c v·c   subject to   ½ cᵀ M c ≤ KL,     c ∝ −(M + λ I)⁻¹ v

is the natural-gradient step in the span, which determines the sign, size and combination of components. M follows from
derivatives of the logits along each direction, so no Fisher is formed; v follows from one gradient. The budget is
divided over several steps, each with new derivatives, and constrains the measured KL.
"""

import dataclasses
import enum
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from npeff_jax._checks import as_enum, check_integer, check_real, normalise
from npeff_jax._examples import count_examples, take_examples
from npeff_jax._html import facts_html
from npeff_jax._parameters import ParameterSpace
from npeff_jax._sharding import pad_rows, round_up
from npeff_jax._types import Examples, LogitsFn, PyTree
from npeff_jax.models import Categorical, Model, check_model
from npeff_jax.perturbation._arguments import check_direction, check_directions, check_positive, class_labels
from npeff_jax.perturbation._divergence import Passes, batches, move, perturbed_predictions
from npeff_jax.perturbation._edit import NoEditError, no_move
from npeff_jax.perturbation._scale import go_to_kl


class Aim(enum.Enum):
    """Loss of the target examples that a move lowers: −log p_y for REPAIR, −log(1 − p_y) for FORGET.

    Forgetting does not maximise −log p_y: its gradient vanishes if the label is certain and is largest if the label is
    lost already, so the budget would be spent on examples that need no more change.
    """

    REPAIR = "repair"
    FORGET = "forget"


@dataclasses.dataclass(frozen=True)
class TrustRegion:
    """Budget and settings of `span_move`.

    Attributes:
        nats: mean KL allowed on the other examples, in nats; the move uses at least nine tenths of it.
        steps: number of steps, each with new derivatives.
        ridge: λ as a fraction of the mean diagonal of M. It suppresses noise in nearly parallel or unused directions,
            which few examples determine.
    """

    nats: float = 0.01
    steps: int = 4
    ridge: float = 0.1

    def __post_init__(self) -> None:
        normalise(
            self,
            nats=check_positive("nats", self.nats),
            steps=check_integer("steps", self.steps),
            ridge=check_real("ridge", self.ridge, 0.0, np.inf, open_high=True),
        )


WITHIN, PASSES = TrustRegion(), Passes()
"""Default settings."""


@dataclasses.dataclass(frozen=True, eq=False)
class SpanMove:
    """A move δ = Σ_j c_j d_j of the parameters.

    Attributes:
        move: δ, a pytree shaped like the parameters; add it by `perturb`.
        weights: c, (d,), one per direction.
        loss: mean loss of the target examples, as its `Aim` defines it, before and after.
        kl: mean KL(p_θ ‖ p_{θ+δ}) on the other examples, in nats.
        predicted_kl: ½ cᵀ M c at θ, the second-order KL.
        norm: L2 norm of δ.
    """

    move: PyTree
    weights: Float[np.ndarray, "d"]
    loss: tuple[float, float]
    kl: float
    predicted_kl: float
    norm: float

    def __repr__(self) -> str:
        before, after = self.loss
        return (
            f"SpanMove along {len(self.weights)} directions: norm {self.norm:.3g}, loss {before:.4g} to {after:.4g}, "
            f"KL {self.kl:.3g} nats elsewhere ({self.predicted_kl:.3g} by second order)"
        )

    def _repr_html_(self) -> str:
        facts = [
            ("directions", len(self.weights)),
            ("L2 norm", self.norm),
            ("loss before", self.loss[0]),
            ("loss after", self.loss[1]),
            ("KL elsewhere, nats", self.kl),
            ("KL elsewhere by second order", self.predicted_kl),
            ("largest weights", ", ".join(f"{j}: {self.weights[j]:+.3g}" for j in self.largest[:6])),
        ]
        return facts_html("Move in the span of components", facts)

    @property
    def largest(self) -> Int[np.ndarray, "d"]:
        """Positions of the directions, sorted by absolute weight, largest first."""
        return np.argsort(-np.abs(self.weights), kind="stable")


def span_move(
    model: Model,
    directions: Iterable[PyTree],
    examples: Examples,
    labels: Int[np.ndarray, "n"] | None,
    others: Examples,
    *,
    aim: Aim = Aim.REPAIR,
    within: TrustRegion = WITHIN,
    passes: Passes = PASSES,
) -> SpanMove:
    """Find the move in the span of directions that lowers the loss of target examples most for a given KL on others.

    Section 3.5 suggests the loss gradient for repairs; here it determines sign, size and combination of directions.

    Args:
        model: a model with a `Categorical` output. It is not changed.
        directions: d directions, such as from `component_directions`; they may be linearly dependent.
        examples: target examples, which should get their labels or lose them.
        labels: labels of the target examples; by default the model's predictions.
        others: examples whose predictions should stay.
        aim: the loss to lower.
        within: KL budget and settings.
        passes: settings of forward passes. Derivatives are computed on one device.

    Raises:
        TypeError: the model's outputs have no classes.
        ValueError: no direction, or directions that are not shaped like the parameters.
        NoEditError: no combination of the directions changes the loss.
    """
    check_model(model)
    check_directions(model, directions)
    aim = as_enum("aim", aim, Aim)
    given = list(directions)
    if not given:
        raise ValueError("directions is empty; pass at least one direction")
    for j, direction in enumerate(given):
        check_direction(model, direction, f"directions[{j}]")
    examples, others = take_examples(examples), take_examples(others)
    known = class_labels(model, examples, labels)
    if known is None:
        known = _predictions(model, examples, passes)
    space = model.space
    flat = np.stack([np.asarray(space.ravel(direction), np.float32) for direction in given])
    c, spent = np.zeros(len(flat)), 0.0
    for step in range(1, within.steps + 1):
        loss, v = _loss(model, flat, c, examples, known, aim, passes)
        M = _fisher(model, flat, c, others, passes)
        if step == 1:
            before, first_M = loss, M
        damped = M + within.ridge * max(np.trace(M) / len(M), np.finfo(np.float64).tiny) * np.eye(len(M))
        ahead = -np.linalg.solve(damped, v)
        curvature = float(ahead @ M @ ahead)
        if not (np.isfinite(ahead).all() and curvature > 0):
            if step == 1:
                raise NoEditError("no combination of these directions changes both loss and predictions; pass others")
            break
        target = within.nats * (step / within.steps) ** 2  # the KL is quadratic in the distance
        c, spent = go_to_kl(model, flat, c, ahead, np.sqrt(2 * target / curvature) / step, target, others, passes)
    after, _ = _loss(model, flat, c, examples, known, aim, passes)
    delta = c @ flat
    return SpanMove(
        move=space.unravel(jnp.asarray(delta, jnp.float32)),
        weights=c,
        loss=(before, after),
        kl=spent,
        predicted_kl=float(c @ first_M @ c) / 2,
        norm=float(np.linalg.norm(delta)),
    )


def _loss(
    model: Model,
    flat: Float[np.ndarray, "d m"],
    c: Float[np.ndarray, "d"],
    examples: Examples,
    labels: Int[np.ndarray, "n"],
    aim: Aim,
    passes: Passes,
) -> tuple[float, Float[np.ndarray, "d"]]:
    """Return the mean loss at θ + Σ_j c_j d_j, and its derivative along each direction."""
    space = model.space
    program = model.program(_summed_loss, model.logits_fn, space, model.output, aim)
    delta = space.unravel(jnp.asarray(c @ flat, jnp.float32))
    loss, gradient, n = 0.0, np.zeros(space.size), count_examples(examples)
    for batch, y, valid in _batches(examples, labels, passes):
        with jax.default_matmul_precision(passes.precision):
            part, leaves = program(model.params, delta, batch, y, valid)
        loss += float(part)
        gradient += np.concatenate([np.ravel(leaf) for leaf in jax.device_get(leaves)])
    return loss / n, flat @ gradient / n


def _fisher(
    model: Model, flat: Float[np.ndarray, "d m"], c: Float[np.ndarray, "d"], examples: Examples, passes: Passes
) -> Float[np.ndarray, "d d"]:
    """Return the mean Fisher of the examples in the span, (d, d), at θ + Σ_j c_j d_j."""
    space = model.space
    leaves = tuple(
        jnp.asarray(flat[:, p.offset : p.offset + p.size].reshape(-1, *p.shape)) for p in space.layout.parameters
    )
    program = model.program(_summed_fisher, model.logits_fn, space, model.output)
    delta = space.unravel(jnp.asarray(c @ flat, jnp.float32))
    M, n = np.zeros((len(flat),) * 2), count_examples(examples)
    for batch, _, valid in _batches(examples, np.zeros(n, np.int64), passes):
        with jax.default_matmul_precision(passes.precision):
            M += np.asarray(program(model.params, delta, leaves, batch, valid), np.float64)
    return M / n


def _batches(
    examples: Examples, labels: Int[np.ndarray, "n"], passes: Passes
) -> Iterator[tuple[Examples, np.ndarray, np.ndarray]]:
    """Return batches of one size, their labels, and masks that are False for padding."""
    n = count_examples(examples)
    size = min(passes.batch_size, n)
    y = pad_rows(np.asarray(labels), round_up(n, size)).reshape(-1, size)
    valid = (np.arange(y.size) < n).reshape(y.shape)
    return zip(batches(examples, size), y, valid, strict=True)


def _summed_loss(
    params: PyTree,
    delta: PyTree,
    batch: Examples,
    labels: jax.Array,
    valid: jax.Array,
    logits_fn: LogitsFn,
    space: ParameterSpace,
    output: Categorical,
    aim: Aim,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Return the loss summed over a batch at θ + δ, and its gradient."""
    at = tuple(move(space.select(params), space.select(delta), 1.0))

    def loss(selected: tuple[jax.Array, ...]) -> jax.Array:
        logits = jax.vmap(logits_fn, (None, 0))(space.join(params, selected), batch).astype(jnp.float32)
        log_p = jax.nn.log_softmax(logits / output.temperature)
        own = jax.nn.one_hot(labels, log_p.shape[-1], dtype=bool)
        aimed = jax.nn.logsumexp(log_p, axis=-1, where=own if aim is Aim.REPAIR else ~own)
        return -jnp.sum(jnp.where(valid, aimed, 0.0))

    return jax.value_and_grad(loss)(at)


def _summed_fisher(
    params: PyTree,
    delta: PyTree,
    directions: tuple[jax.Array, ...],
    batch: Examples,
    valid: jax.Array,
    logits_fn: LogitsFn,
    space: ParameterSpace,
    output: Categorical,
) -> jax.Array:
    """Return the Fisher in the span of the directions, (d, d), summed over a batch at θ + δ."""
    at = tuple(move(space.select(params), space.select(delta), 1.0))

    def logits_of(selected: tuple[jax.Array, ...]) -> jax.Array:
        return jax.vmap(logits_fn, (None, 0))(space.join(params, selected), batch).astype(jnp.float32)

    factors = jax.vmap(output.factor)(logits_of(at)) * valid[:, None, None]
    tangents = jax.lax.map(lambda direction: jax.jvp(logits_of, (at,), (direction,))[1], directions)  # (d, batch, C)
    Z = jnp.einsum("dbC,bcC->dbc", tangents, factors).reshape(len(tangents), -1)
    return Z @ Z.T


def _predictions(model: Model, examples: Examples, passes: Passes) -> Int[np.ndarray, "n"]:
    return perturbed_predictions(model, examples, [no_move(model)], [0.0], batch_size=passes.batch_size)[0, 0]
