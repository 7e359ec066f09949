"""Trust-region moves in the span of components, from the loss gradient under a KL budget: repairs and forgetting.

The loss of target examples should decrease (repair) or increase (forgetting) while the predictions on other examples
stay. With G the directions, v = G ∇loss of the target examples, and M = G F Gᵀ with F the mean Fisher of the others,

    min_c ± v·c   subject to   ½ cᵀ M c ≤ KL,     c ∝ ∓ (M + λ I)⁻¹ v

is the natural-gradient step in the span, which determines the sign, size and combination of components. v and M follow
from derivatives of the logits along each direction, so no Fisher is formed. The budget is divided over several steps,
each with new derivatives, and constrains the measured KL.
"""

import dataclasses
import enum
from collections.abc import Iterable

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
from npeff_jax.perturbation._divergence import Passes, batches, iterate_perturbed_kl, perturbed_predictions
from npeff_jax.perturbation._edit import NoEditError, no_move, scaled


class Aim(enum.Enum):
    """Whether a move lowers or raises the loss of the target examples."""

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
        loss: mean loss of the target examples, before and after.
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
        """Directions sorted by |weight|, largest first."""
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
    """Find the move in the span of directions that changes the loss of target examples most for a given KL on others.

    Section 3.5 suggests the loss gradient for repairs; here it determines sign, size and combination of directions.

    Args:
        model: a model with a `Categorical` output. It is not changed.
        directions: d directions, such as from `component_directions`; they may be linearly dependent.
        examples: target examples, whose loss should decrease or increase.
        labels: labels of the target examples; by default the model's predictions.
        others: examples whose predictions should stay.
        aim: `Aim.REPAIR` lowers the loss, `Aim.FORGET` raises it.
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
    derivatives = _Derivatives(model, flat, passes)

    c, spent, first_M, sign = np.zeros(len(flat)), 0.0, None, -1.0 if aim is Aim.REPAIR else 1.0
    for step in range(1, within.steps + 1):
        v, before = derivatives.loss(c, examples, known)
        M = derivatives.fisher(c, others)
        if first_M is None:
            first_M, loss = M, before
        damped = M + within.ridge * max(np.trace(M) / len(M), np.finfo(np.float64).tiny) * np.eye(len(M))
        ahead = sign * np.linalg.solve(damped, v)
        curvature = float(ahead @ M @ ahead)
        if not (np.isfinite(ahead).all() and curvature > 0):
            if step == 1:
                raise NoEditError("no combination of these directions changes both loss and predictions; pass others")
            break
        target = within.nats * (step / within.steps) ** 2  # the KL is quadratic in the distance
        start = np.sqrt(2 * target / curvature) if step == 1 else np.sqrt(2 * target / curvature) / step
        c, spent = _go(model, flat, c, ahead, start, target, others, passes)
    _, after = derivatives.loss(c, examples, known)
    delta = c @ flat
    assert first_M is not None
    return SpanMove(
        move=space.unravel(jnp.asarray(delta, jnp.float32)),
        weights=c,
        loss=(loss, after),
        kl=spent,
        predicted_kl=float(c @ first_M @ c) / 2,
        norm=float(np.linalg.norm(delta)),
    )


def scale_to_kl(
    model: Model, direction: PyTree, others: Examples, nats: float, *, passes: Passes = PASSES
) -> tuple[PyTree, float]:
    """Scale a direction to a given mean KL on some examples; return the scaled direction and its KL.

    Moves of equal KL are comparable between models and directions; moves of equal norm are not.

    Args:
        model: the model.
        direction: a pytree shaped like the parameters, of any norm; its sign is kept.
        others: examples that the mean is taken over.
        nats: mean KL to reach, in nats; the result has at least nine tenths of it.
        passes: settings of forward passes.

    Raises:
        NoEditError: the direction changes no prediction, or the KL jumps over the range.
    """
    check_model(model)
    check_direction(model, direction)
    flat = np.asarray(model.space.ravel(direction), np.float64)
    norm = float(np.linalg.norm(flat))
    if not norm > 0:
        raise NoEditError("the direction is zero; it changes no prediction")
    unit = (flat / norm).astype(np.float32)[None]
    nats = check_positive("nats", nats)
    c, kl = _go(model, unit, np.zeros(1), np.ones(1), 1e-2, nats, take_examples(others), passes)
    return scaled(float(c[0]), model.space.unravel(jnp.asarray(unit[0]))), kl


TRIES = 40
"""Maximum number of step lengths tried for a given KL; a smooth model needs two or three, one with kinks a few more."""


def _go(
    model: Model,
    flat: Float[np.ndarray, "d m"],
    c: Float[np.ndarray, "d"],
    ahead: Float[np.ndarray, "d"],
    length: float,
    target: float,
    others: Examples,
    passes: Passes,
) -> tuple[Float[np.ndarray, "d"], float]:
    """Return c + t · ahead with t such that the measured KL is 0.97 to 1 times ``target``; and that KL."""
    low, high, best = 0.0, np.inf, (c, 0.0)
    for _ in range(TRIES):
        tried = c + length * ahead
        move = model.space.unravel(jnp.asarray(tried @ flat, jnp.float32))
        (kl,) = iterate_perturbed_kl(model, others, [move], [1.0], passes, finite=False)
        mean = float(np.mean(np.asarray(kl, np.float64)))
        if 0.97 * target <= mean <= target:
            return tried, mean
        if np.isfinite(mean) and mean < target:
            low, best = length, (tried, mean)
        else:
            high = length
        guess = length * np.sqrt(0.985 * target / mean) if np.isfinite(mean) and mean > 0 else 10 * length
        inside = low < guess < high
        length = guess if inside else (low + high) / 2 if np.isfinite(high) else 10 * length
    if best[1] > 0:
        return best
    raise NoEditError(f"no move along this direction has a mean KL near {target:.2g} nats; try another budget")


class _Derivatives:
    """Loss gradient and Fisher in the span of directions, at θ + Σ_j c_j d_j, from derivatives of the logits."""

    def __init__(self, model: Model, flat: Float[np.ndarray, "d m"], passes: Passes) -> None:
        self.model, self.flat, self.passes = model, flat, passes
        parameters = model.space.layout.parameters
        self.leaves = tuple(
            jnp.asarray(flat[:, p.offset : p.offset + p.size].reshape(-1, *p.shape)) for p in parameters
        )
        self.program = model.program(_sums, model.logits_fn, model.space, model.output)

    def loss(self, c: np.ndarray, examples: Examples, labels: np.ndarray) -> tuple[Float[np.ndarray, "d"], float]:
        """Return the derivative of the mean loss along each direction, and the mean loss."""
        v, _, loss, n = self._run(c, examples, labels)
        return v / n, loss / n

    def fisher(self, c: np.ndarray, examples: Examples) -> Float[np.ndarray, "d d"]:
        """Return the mean Fisher of the examples in the span, (d, d)."""
        _, M, _, n = self._run(c, examples, np.zeros(count_examples(examples), np.int64))
        return M / n

    def _run(self, c: np.ndarray, examples: Examples, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, int]:
        n = count_examples(examples)
        size = min(self.passes.batch_size, n)
        y = pad_rows(np.asarray(labels), round_up(n, size)).reshape(-1, size)
        valid = (np.arange(y.size) < n).reshape(y.shape)
        delta = self.model.space.unravel(jnp.asarray(c @ self.flat, jnp.float32))
        v, M, loss = np.zeros(len(c)), np.zeros((len(c),) * 2), 0.0
        with jax.default_matmul_precision(self.passes.precision):
            for i, batch in enumerate(batches(examples, size)):
                parts = jax.device_get(self.program(self.model.params, delta, self.leaves, batch, y[i], valid[i]))
                v, M, loss = v + parts[0], M + parts[1].astype(np.float64), loss + float(parts[2])
        return v, M, loss, n


def _sums(
    params: PyTree,
    delta: PyTree,
    directions: tuple[jax.Array, ...],
    batch: Examples,
    labels: jax.Array,
    valid: jax.Array,
    logits_fn: LogitsFn,
    space: ParameterSpace,
    output: Categorical,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return sums over a batch: derivatives of the loss (d,), the Fisher in the span (d, d), and the loss."""
    at = tuple((jnp.asarray(leaf, jnp.float32) + step) for leaf, step in zip(space.select(params), space.select(delta)))

    def logits_of(selected: tuple[jax.Array, ...]) -> jax.Array:
        return jax.vmap(logits_fn, (None, 0))(space.join(params, selected), batch).astype(jnp.float32)

    logits = logits_of(at)
    tangents = jax.lax.map(lambda direction: jax.jvp(logits_of, (at,), (direction,))[1], directions)  # (d, batch, C)
    log_p = jax.nn.log_softmax(logits / output.temperature)
    own = jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    by_logits = (jnp.exp(log_p) - jax.nn.one_hot(labels, log_p.shape[-1])) / output.temperature * valid[:, None]
    factors = jax.vmap(output.factor)(logits) * valid[:, None, None]
    Z = jnp.einsum("dbC,bcC->dbc", tangents, factors).reshape(len(tangents), -1)
    return jnp.einsum("dbC,bC->d", tangents, by_logits), Z @ Z.T, -jnp.sum(own * valid)


def _predictions(model: Model, examples: Examples, passes: Passes) -> Int[np.ndarray, "n"]:
    return perturbed_predictions(model, examples, [no_move(model)], [0.0], batch_size=passes.batch_size)[0, 0]
