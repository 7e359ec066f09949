"""Steering: response of a behaviour to steps of increasing size along a direction, and its linear range."""

import dataclasses
import html
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from npeff_jax._checks import check_integer
from npeff_jax._examples import count_examples, first_example, take_examples
from npeff_jax._html import facts_html, table_html
from npeff_jax._types import Examples, PyTree
from npeff_jax.models import Model, check_model
from npeff_jax.perturbation import Passes, batches, check_direction, check_positive, perturb, perturbed_kl, scale_to_kl

PASSES = Passes()
"""Default settings of forward passes."""

LINEAR = 0.1
"""Largest relative deviation from the linear prediction within the linear range."""


@dataclasses.dataclass(frozen=True, eq=False)
class Response:
    """Response of a behaviour along one direction.

    Attributes:
        scales: step sizes, ascending, including zero.
        behaviour: mean behaviour over the examples at each step size.
        error: standard error of the change from step size zero (paired).
        kl: mean KL at each step size, in nats.
    """

    scales: Float[np.ndarray, "s"]
    behaviour: Float[np.ndarray, "s"]
    error: Float[np.ndarray, "s"]
    kl: Float[np.ndarray, "s"]

    @property
    def slope(self) -> float:
        """Derivative of the behaviour at zero, from the two neighbouring step sizes."""
        zero = int(np.argmin(np.abs(self.scales)))
        return float(
            (self.behaviour[zero + 1] - self.behaviour[zero - 1]) / (self.scales[zero + 1] - self.scales[zero - 1])
        )

    @property
    def linear_range(self) -> tuple[float, float]:
        """Range of step sizes in which the response deviates from slope · size by at most a fraction `LINEAR`."""
        zero = int(np.argmin(np.abs(self.scales)))
        expected = self.slope * self.scales
        missed = np.abs(self.behaviour - self.behaviour[zero] - expected) > LINEAR * np.abs(expected)
        low = high = zero
        while low > 0 and not missed[low - 1]:
            low -= 1
        while high < len(self.scales) - 1 and not missed[high + 1]:
            high += 1
        return float(self.scales[low]), float(self.scales[high])


@dataclasses.dataclass(frozen=True, eq=False)
class Steering:
    """Responses of a behaviour along directions, at sizes of the same KL.

    Attributes:
        responses: responses by name of the direction; the first is of interest, the others are for comparison.
        behaviour: description of the behaviour.
        nats: largest mean KL, in nats.
    """

    responses: dict[str, Response]
    behaviour: str
    nats: float

    @property
    def reach(self) -> dict[str, float]:
        """Difference of the behaviour between the two ends, per direction."""
        return {name: float(abs(r.behaviour[-1] - r.behaviour[0])) for name, r in self.responses.items()}

    def __repr__(self) -> str:
        name, own = next(iter(self.responses.items()))
        low, high = own.linear_range
        others = [reach for other, reach in self.reach.items() if other != name]
        compared = f"; others {min(others):.3g} to {max(others):.3g}" if others else ""
        return (
            f"Steering of {self.behaviour} along {name!r}: {own.behaviour[0]:.3g} to {own.behaviour[-1]:.3g} at a KL "
            f"of {self.nats:.2g} either way, linear from {low:.3g} to {high:.3g}{compared}"
        )

    def _repr_html_(self) -> str:
        heads = ("direction", "at the − end", "at 0", "at the + end", "slope", "linear from", "to")
        rows = []
        for name, r in self.responses.items():
            zero = int(np.argmin(np.abs(r.scales)))
            rows.append((name, r.behaviour[0], r.behaviour[zero], r.behaviour[-1], r.slope, *r.linear_range))
        facts = [("behaviour", self.behaviour), ("largest mean KL, nats", self.nats)]
        return facts_html("Steering", facts, self.svg(), table_html(heads, rows))

    def svg(self, width: int = 360, height: int = 180) -> str:
        """Plot the responses against the signed square root of the KL, which makes directions comparable."""
        x_of = {name: np.sign(r.scales) * np.sqrt(r.kl) for name, r in self.responses.items()}
        most = max(float(np.abs(x).max()) for x in x_of.values()) or 1.0
        every = np.concatenate([r.behaviour for r in self.responses.values()])
        low, high = float(every.min()), float(every.max())
        span = (high - low) or 1.0
        lines = []
        for k, (name, r) in reversed(list(enumerate(self.responses.items()))):
            points = " ".join(
                f"{20 + (x / most + 1) / 2 * (width - 40):.1f},{height - 20 - (y - low) / span * (height - 40):.1f}"
                for x, y in zip(x_of[name], r.behaviour)
            )
            color, thick = ("#d1495b", 2) if k == 0 else ("#8a94a6", 1)
            lines.append(
                f"<polyline points='{points}' fill='none' stroke='{color}' stroke-width='{thick}'>"
                f"<title>{html.escape(name)}</title></polyline>"
            )
        label = html.escape(
            f"{self.behaviour}, {low:.3g} to {high:.3g}, over ±√KL up to {most:.3g}; "
            f"red: {next(iter(self.responses))}, grey: others",
            quote=True,
        )
        return (
            f"<svg role='img' aria-label='{label}' width='{width}' height='{height}'>{''.join(lines)}</svg>"
            f"<div style='font-size:85%;opacity:.7'>{label}</div>"
        )


def steer(
    model: Model,
    directions: Mapping[str, PyTree],
    examples: Examples,
    behaviour: int | Callable[[jax.Array], jax.Array],
    *,
    nats: float = 0.1,
    n_sizes: int = 6,
    passes: Passes = PASSES,
) -> Steering:
    """Measure a behaviour of the predictions at several step sizes along directions, with both signs.

    The largest step along each direction has a mean KL of ``nats`` on the examples, so that components and random
    directions are compared at equal KL.

    Args:
        model: the model. It is not changed.
        directions: directions by name; the first is of interest, the others are for comparison, such as other
            components and random directions.
        examples: n examples.
        behaviour: a class, for its probability; or a function from the logits (C,) of an example to a number.
        nats: mean KL at the largest step sizes, in nats.
        n_sizes: number of evenly spaced step sizes per sign.
        passes: settings of forward passes.

    Raises:
        ValueError: no direction, a class that the model does not have, or a direction that changes no prediction.
    """
    check_model(model)
    examples, nats = take_examples(examples), check_positive("nats", nats)
    n_sizes = check_integer("n_sizes", n_sizes, 2)
    if not isinstance(directions, Mapping) or not directions:
        raise ValueError(
            "directions is empty or has no names; pass a dict of name to pytree shaped like the parameters"
        )
    for name, direction in directions.items():
        check_direction(model, direction, f"directions[{name!r}]")
    told, function = _behaviour(model, examples, behaviour)
    measured = jax.jit(lambda params, batch: jax.vmap(lambda x: function(model.logits_fn(params, x)))(batch))
    fractions = np.arange(1, n_sizes + 1) / n_sizes
    n = count_examples(examples)
    options: dict[str, Any] = {"batch_size": passes.batch_size, "mesh": passes.mesh}
    size = min(passes.batch_size, n)

    def values_at(move: PyTree, scale: float) -> Float[np.ndarray, "n"]:
        params = perturb(model, move, scale).params
        with jax.default_matmul_precision(passes.precision):
            parts = [np.asarray(measured(params, batch), np.float64) for batch in batches(examples, size)]
        return np.concatenate(parts)[:n]

    responses = {}
    for name, direction in directions.items():
        unit = np.asarray(model.space.ravel(direction), np.float64)
        norm = float(np.linalg.norm(unit))
        ends = {}
        for sign in (-1.0, 1.0):
            move, _ = scale_to_kl(model, _times(sign, direction), examples, nats, passes=passes)
            ends[sign] = float(np.linalg.norm(np.asarray(model.space.ravel(move), np.float64)))
        scales = np.concatenate([-ends[-1.0] * fractions[::-1], [0.0], ends[1.0] * fractions])
        along = model.space.unravel(jnp.asarray(unit / norm, jnp.float32))
        values = np.stack([values_at(along, float(scale)) for scale in scales])
        steps = values - values[n_sizes]
        error = steps.std(axis=1, ddof=min(1, n - 1)) / np.sqrt(n)
        kl = perturbed_kl(model, examples, [along], scales, **options)[0].mean(axis=1)
        responses[name] = Response(scales, values.mean(axis=1), error, kl)
    return Steering(responses, told, nats)


def _times(scale: float, direction: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: scale * leaf, direction)


def _behaviour(
    model: Model, examples: Examples, behaviour: int | Callable[[jax.Array], jax.Array]
) -> tuple[str, Callable[[jax.Array], jax.Array]]:
    """Return a description of the behaviour, and the behaviour as a function of logits."""
    if callable(behaviour):
        return getattr(behaviour, "__name__", "a behaviour").replace("<lambda>", "a behaviour"), behaviour
    n_classes = model.n_classes(first_example(examples))
    target = check_integer("behaviour", behaviour, 0, n_classes - 1)
    name = str(model.label_names[target]) if model.label_names else str(target)
    return f"the probability of class {name}", lambda logits: model.output.probabilities(logits)[target]
