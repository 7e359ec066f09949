"""Output families: what a model's last vector means, as cotangents, divergences and samples.

A per-example Fisher is Jᵀ S J with J the Jacobian of the logits and S the Fisher of the output distribution with
respect to them. All that the rest of the library asks of an output family is a factor of S, given in rows: pulled back
through the model they become the rows of the PEF.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from npeff_jax._checks import check_real, normalise
from npeff_jax._types import Cotangents, Logits


class Output(abc.ABC):
    """An output family: how logits parametrise a distribution over predictions."""

    @abc.abstractmethod
    def factor(self, logits: Logits) -> Cotangents:
        """Rows Lᵀ with L Lᵀ = S, as few as its rank needs."""

    @abc.abstractmethod
    def weighted(self, logits: Logits, weights: Float[Array, "c C"]) -> Cotangents:
        """Combinations Σ_j w_j a_j of the class rows, without forming all C of them."""

    def class_rows(self, logits: Logits) -> Cotangents:
        """One row an outcome, ``a_j = sqrt(p_j) ∇ log p_j`` with respect to the logits: the paper's (below eq. 2)."""
        return self.weighted(logits, jnp.eye(logits.size, dtype=logits.dtype))

    @abc.abstractmethod
    def sample(self, key: jax.Array, logits: Logits, n_samples: int) -> Cotangents:
        """Rows ``∇ log p(y_s) / sqrt(n_samples)`` with y_s drawn from the model: their outer products average to S."""

    @abc.abstractmethod
    def probabilities(self, logits: Logits) -> Logits:
        """The weight of each row of `class_rows`, what thresholds on class probability compare."""

    @abc.abstractmethod
    def kl(self, logits: Logits, perturbed: Logits) -> jax.Array:
        """KL(p ‖ p_perturbed) in nats, in the order of eq. 2."""

    def kl_error(self, logits: Logits, perturbed: Logits) -> jax.Array:
        """The standard error of `kl`: zero unless that is an estimate from draws."""
        return jnp.zeros((), jnp.result_type(logits, perturbed))

    @property
    @abc.abstractmethod
    def minimum_size(self) -> int:
        """The fewest logits that make sense."""


@dataclasses.dataclass(frozen=True)
class Categorical(Output):
    """A softmax over C classes.

    Attributes:
        temperature: logits are divided by it. A Tracr program's logits are indicators, which a softmax hardly tells
            apart: there a temperature below 1 sharpens.
    """

    temperature: float = 1.0

    minimum_size = 2

    def __post_init__(self) -> None:
        temperature = check_real("temperature", self.temperature, 0.0, np.inf, open_low=True, open_high=True)
        normalise(self, temperature=temperature)

    def factor(self, logits: Logits) -> Cotangents:
        """The (C−1, C) rows of Lᵀ, diag p − p pᵀ = L Lᵀ, in closed form.

        With the classes in ascending order of p and T_k = Σ_{l≥k} p_l, column k of L is ``sqrt(p_k T_{k+1} / T_k)`` on
        the diagonal and ``−p_l sqrt(p_k / (T_k T_{k+1}))`` below it. Nothing is subtracted, so a prediction of 1 − 1e-7
        keeps its precision; p − p² would lose half the trace there.
        """
        log_p = self._log_probabilities(logits)
        order = jnp.argsort(log_p)
        p = jnp.exp(log_p[order])
        tail = jnp.cumsum(p[::-1])[::-1]
        here, after = tail[:-1], tail[1:]
        diagonal = jnp.sqrt(p[:-1] * after / here)
        below = -p[None] * jnp.sqrt(p[:-1] / (here * after))[:, None]
        column, position = jnp.arange(p.size - 1)[:, None], jnp.arange(p.size)[None, :]
        nothing = jnp.zeros_like(below)
        rows = jnp.where(position == column, diagonal[:, None], jnp.where(position > column, below, nothing))
        return nothing.at[:, order].set(rows) / self.temperature

    def weighted(self, logits: Logits, weights: Float[Array, "c C"]) -> Cotangents:
        p = self.probabilities(logits)
        top, rooted = jnp.argmax(p), weights * jnp.sqrt(p)[None]
        return (rooted * _others(p, top)[None] - p[None] * _others(rooted, top)) / self.temperature

    def sample(self, key: jax.Array, logits: Logits, n_samples: int) -> Cotangents:
        log_p = self._log_probabilities(logits)
        drawn = jax.random.categorical(key, log_p, shape=(n_samples,))
        own = jax.nn.one_hot(drawn, log_p.size, dtype=bool)
        p = jnp.exp(log_p)
        return jnp.where(own, _others(p, jnp.argmax(p))[None], -p[None]) / (n_samples**0.5 * self.temperature)

    def probabilities(self, logits: Logits) -> Logits:
        return jnp.exp(self._log_probabilities(logits))

    def kl(self, logits: Logits, perturbed: Logits) -> jax.Array:
        """Σ_j p_j (e^d − 1 − d) with d the change of log p_j: every term is non-negative, so small divergences stay
        exact.
        """
        log_p, log_q = self._log_probabilities(logits), self._log_probabilities(perturbed)
        p, d = jnp.exp(log_p), log_q - log_p
        moderate = _excess(jnp.minimum(d, 1.0))
        # A class that the prediction nearly excluded can come back by more than e^88: q itself, never p e^d = 0 · inf.
        return jnp.sum(jnp.where(d < 1.0, p * moderate, jnp.exp(log_q) - p - p * d))

    def _log_probabilities(self, logits: Logits) -> Logits:
        return jax.nn.log_softmax(logits / self.temperature)


@dataclasses.dataclass(frozen=True)
class Gaussian(Output):
    """Independent normal outputs of a fixed scale around the model's vector: regression, numerical Tracr programs.

    Attributes:
        scale: the standard deviation, in the unit of the outputs.
    """

    scale: float = 1.0

    minimum_size = 1

    def __post_init__(self) -> None:
        normalise(self, scale=check_real("scale", self.scale, 0.0, np.inf, open_low=True, open_high=True))

    def factor(self, logits: Logits) -> Cotangents:
        return jnp.eye(logits.size, dtype=logits.dtype) / self.scale

    def weighted(self, logits: Logits, weights: Float[Array, "c C"]) -> Cotangents:
        return weights / self.scale

    def sample(self, key: jax.Array, logits: Logits, n_samples: int) -> Cotangents:
        noise = jax.random.normal(key, (n_samples, logits.size), logits.dtype)
        return noise / (self.scale * n_samples**0.5)

    def probabilities(self, logits: Logits) -> Logits:
        return jnp.ones_like(logits)

    def kl(self, logits: Logits, perturbed: Logits) -> jax.Array:
        return jnp.sum((logits - perturbed) ** 2) / (2 * self.scale**2)


@dataclasses.dataclass(frozen=True)
class Bernoulli(Output):
    """Independent yes-or-no labels, a logit each: multi-label classifiers, and binary ones with a single logit.

    Label j has probability σ(x_j). S is diagonal with entries σ(x_j) σ(−x_j), so every label is a row of its own.
    `probabilities` are those of "yes"; a threshold on them leaves out labels that are hardly possible, and
    ``lost_mass`` is then the expected number of labels left out.
    """

    minimum_size = 1

    def factor(self, logits: Logits) -> Cotangents:
        return jnp.diag(self._deviations(logits))

    def weighted(self, logits: Logits, weights: Float[Array, "c C"]) -> Cotangents:
        return weights * self._deviations(logits)

    def sample(self, key: jax.Array, logits: Logits, n_samples: int) -> Cotangents:
        yes = jax.random.bernoulli(key, self.probabilities(logits), (n_samples, logits.size))
        return jnp.where(yes, jax.nn.sigmoid(-logits), -jax.nn.sigmoid(logits)) / jnp.sqrt(n_samples * 1.0)

    def probabilities(self, logits: Logits) -> Logits:
        return jax.nn.sigmoid(logits)

    def kl(self, logits: Logits, perturbed: Logits) -> jax.Array:
        """The sum over labels; each is a categorical over "yes" and "no" with logits x_j and 0."""
        before, after = (jnp.stack([x, jnp.zeros_like(x)], axis=1) for x in (logits, perturbed))
        return jnp.sum(jax.vmap(Categorical().kl)(before, after))

    @staticmethod
    def _deviations(logits: Logits) -> Logits:
        """Return √(p (1 − p)) per label, from the logarithms of both sigmoids: without a difference."""
        return jnp.exp((jax.nn.log_sigmoid(logits) + jax.nn.log_sigmoid(-logits)) / 2)


@dataclasses.dataclass(frozen=True)
class Generated(Output):
    """Outcomes too many to list, S of which were drawn from the model: the answers of a language model.

    A logit is the log-probability of one drawn outcome, log p(y_s). F = E_y[∇log p(y) ∇log p(y)ᵀ] is estimated by the
    mean over the draws, so S is I/S and each draw is a row, ``∇log p(y_s) / sqrt(S)``. The estimate is unbiased for F,
    and its error falls as 1/sqrt(S); its squared norm, and the normalised Fisher, are biased, as for `Sampled`. Where
    `Sampled` draws labels from a vector of C logits, here the draws were made beforehand and are part of the example
    (`LanguageModel.generate`).

    The draws must come from the same parameters that are explained: others make another quantity.
    """

    minimum_size = 1

    def factor(self, logits: Logits) -> Cotangents:
        return jnp.eye(logits.size, dtype=logits.dtype) / logits.size**0.5

    def weighted(self, logits: Logits, weights: Float[Array, "c C"]) -> Cotangents:
        return weights / logits.size**0.5

    def sample(self, key: jax.Array, logits: Logits, n_samples: int) -> Cotangents:
        """Some of the draws, with replacement."""
        drawn = jax.random.randint(key, (n_samples,), 0, logits.size)
        return jax.nn.one_hot(drawn, logits.size, dtype=logits.dtype) / n_samples**0.5

    def probabilities(self, logits: Logits) -> Logits:
        """The weight of each draw in the mean, 1/S."""
        return jnp.full_like(logits, 1 / logits.size)

    def kl(self, logits: Logits, perturbed: Logits) -> jax.Array:
        """An unbiased estimate of KL(p ‖ p_perturbed) between distributions over whole outcomes, never negative.

        The mean over draws of e^d − 1 − d with d the change of log p(y_s): E_p[e^d] is 1 as far as the perturbed model
        writes nothing that p excludes. For small d its variance is of fourth order, that of −d alone of second. Moves
        that change log-probabilities by several nats make it heavy-tailed: look at `kl_error`.
        """
        return jnp.mean(_excess(perturbed - logits))

    def kl_error(self, logits: Logits, perturbed: Logits) -> jax.Array:
        """The standard error of the mean in `kl`, over the draws; NaN for a single one."""
        return jnp.std(_excess(perturbed - logits), ddof=1) / logits.size**0.5


def _excess(d: jax.Array) -> jax.Array:
    """e^d − 1 − d, by its series where the difference would cancel."""
    series = d**2 / 2 * (1 + d / 3 * (1 + d / 4 * (1 + d / 5 * (1 + d / 6))))  # below 0.1 its error is under 1e-8
    return jnp.where(jnp.abs(d) < 0.1, series, jnp.expm1(d) - d)


def _others(values: Float[Array, "*c C"], top: Int[Array, ""]) -> Float[Array, "*c C"]:
    """For each entry the sum of all others. That of ``top``, the likeliest class, is not a difference: 1 − p of a
    confident p is exact.
    """
    own = (jnp.arange(values.shape[-1]) == top).reshape((1,) * (values.ndim - 1) + (-1,))
    rest = jnp.sum(jnp.where(own, jnp.zeros_like(values), values), axis=-1, keepdims=True)
    return jnp.where(own, rest, values[..., top, None] + (rest - values))
