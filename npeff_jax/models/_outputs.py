"""Output families: the distribution that logits parametrise, with cotangents, divergences and samples.

A per-example Fisher is Jᵀ S J with J the Jacobian of the logits and S the Fisher of the output distribution with
respect to the logits. An output family provides a factor of S as rows on the logits; pulled back through the model,
these become the rows of the PEF.
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
        """Return rows Lᵀ with L Lᵀ = S, as many as the rank of S."""

    @abc.abstractmethod
    def weighted(self, logits: Logits, weights: Float[Array, "c C"]) -> Cotangents:
        """Return linear combinations Σ_j w_j a_j of the class rows, without forming all C of them."""

    def class_rows(self, logits: Logits) -> Cotangents:
        """Return one row per outcome, ``a_j = sqrt(p_j) ∇ log p_j`` with respect to the logits (below eq. 2)."""
        return self.weighted(logits, jnp.eye(logits.size, dtype=logits.dtype))

    @abc.abstractmethod
    def sample(self, key: jax.Array, logits: Logits, n_samples: int) -> Cotangents:
        """Return rows ``∇ log p(y_s) / sqrt(n_samples)`` with y_s sampled from the model; E[Σ_s row rowᵀ] = S."""

    @abc.abstractmethod
    def probabilities(self, logits: Logits) -> Logits:
        """Return the probability of each row of `class_rows`, which thresholds on class probability use."""

    @abc.abstractmethod
    def kl(self, logits: Logits, perturbed: Logits) -> jax.Array:
        """Compute KL(p ‖ p_perturbed) in nats, in the order of eq. 2."""

    def kl_error(self, logits: Logits, perturbed: Logits) -> jax.Array:
        """Compute the standard error of `kl`; zero unless it is an estimate from samples."""
        return jnp.zeros((), jnp.result_type(logits, perturbed))

    @property
    @abc.abstractmethod
    def minimum_size(self) -> int:
        """Smallest valid number of logits."""


@dataclasses.dataclass(frozen=True)
class Categorical(Output):
    """A softmax over C classes.

    Attributes:
        temperature: logits are divided by it. The logits of a Tracr program are 0 or 1, so a temperature below 1 is
            needed for confident predictions.
    """

    temperature: float = 1.0

    minimum_size = 2

    def __post_init__(self) -> None:
        temperature = check_real("temperature", self.temperature, 0.0, np.inf, open_low=True, open_high=True)
        normalise(self, temperature=temperature)

    def factor(self, logits: Logits) -> Cotangents:
        """Return the rows of Lᵀ (C−1, C) with L Lᵀ = diag p − p pᵀ, in closed form.

        With the classes in ascending order of p and T_k = Σ_{l≥k} p_l, column k of L is ``sqrt(p_k T_{k+1} / T_k)`` on
        the diagonal and ``−p_l sqrt(p_k / (T_k T_{k+1}))`` below it. No differences are taken, so a prediction of
        1 − 1e-7 keeps its precision; computing p − p² would lose half the trace there.
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
        """Compute the KL as Σ_j p_j (e^d − 1 − d) with d the change of log p_j.

        Every term is non-negative, so that small divergences are accurate.
        """
        log_p, log_q = self._log_probabilities(logits), self._log_probabilities(perturbed)
        p, d = jnp.exp(log_p), log_q - log_p
        moderate = _excess(jnp.minimum(d, 1.0))
        # For a class with p near 0, e^d may overflow: use q itself instead of p e^d = 0 · inf.
        return jnp.sum(jnp.where(d < 1.0, p * moderate, jnp.exp(log_q) - p - p * d))

    def _log_probabilities(self, logits: Logits) -> Logits:
        return jax.nn.log_softmax(logits / self.temperature)


@dataclasses.dataclass(frozen=True)
class Gaussian(Output):
    """Independent normal outputs with mean given by the model and fixed scale: regression, numerical Tracr programs.

    Attributes:
        scale: standard deviation, in the unit of the outputs.
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
    """Independent binary labels with a logit each: multi-label classifiers, and binary ones with a single logit.

    Label j has probability σ(x_j). S is diagonal with entries σ(x_j) σ(−x_j), so there is one row per label.
    `probabilities` are those of label 1. A threshold on them leaves out improbable labels, and ``lost_mass`` is then
    the expected number of labels left out.
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
        """Compute the sum over labels of the KL of categorical distributions with logits (x_j, 0)."""
        before, after = (jnp.stack([x, jnp.zeros_like(x)], axis=1) for x in (logits, perturbed))
        return jnp.sum(jax.vmap(Categorical().kl)(before, after))

    @staticmethod
    def _deviations(logits: Logits) -> Logits:
        """Return √(p (1 − p)) per label from the logarithms of both sigmoids, which avoids a difference."""
        return jnp.exp((jax.nn.log_sigmoid(logits) + jax.nn.log_sigmoid(-logits)) / 2)


@dataclasses.dataclass(frozen=True)
class Generated(Output):
    """A distribution over too many outcomes to enumerate, known by samples: the answers of a language model.

    Logit s is the log-probability log p(y_s) of sample s. The Fisher F = E_y[∇log p(y) ∇log p(y)ᵀ] is estimated by the
    mean over the q samples, so S is I/q and each sample gives a row ``∇log p(y_s) / sqrt(q)``. The estimate is unbiased
    for F, with an error proportional to 1/sqrt(q); its squared norm and the normalised Fisher are biased, as for
    `Sampled`. While `Sampled` draws labels from a vector of C logits, here the samples are drawn beforehand and are
    part of the example (`models.generate`).

    The samples must be drawn from the parameters that are explained, else the estimate is not of their Fisher.
    """

    minimum_size = 1

    def factor(self, logits: Logits) -> Cotangents:
        return jnp.eye(logits.size, dtype=logits.dtype) / logits.size**0.5

    def weighted(self, logits: Logits, weights: Float[Array, "c C"]) -> Cotangents:
        return weights / logits.size**0.5

    def sample(self, key: jax.Array, logits: Logits, n_samples: int) -> Cotangents:
        """Return rows of samples drawn with replacement from the given ones."""
        drawn = jax.random.randint(key, (n_samples,), 0, logits.size)
        return jax.nn.one_hot(drawn, logits.size, dtype=logits.dtype) / n_samples**0.5

    def probabilities(self, logits: Logits) -> Logits:
        """Return the weight of each sample in the mean, 1/q."""
        return jnp.full_like(logits, 1 / logits.size)

    def kl(self, logits: Logits, perturbed: Logits) -> jax.Array:
        """Estimate KL(p ‖ p_perturbed) between distributions over whole outcomes; unbiased and never negative.

        It is the mean over samples of e^d − 1 − d with d the change of log p(y_s). It is unbiased because E_p[e^d] = 1
        if p excludes no outcome of the perturbed model. For small d its variance is of fourth order, whereas that of −d
        is of second order. If log-probabilities change by several nats it is heavy-tailed: check `kl_error`.
        """
        return jnp.mean(_excess(perturbed - logits))

    def kl_error(self, logits: Logits, perturbed: Logits) -> jax.Array:
        """Compute the standard error of the mean over samples in `kl`; NaN for a single sample."""
        return jnp.std(_excess(perturbed - logits), ddof=1) / logits.size**0.5


def _excess(d: jax.Array) -> jax.Array:
    """Compute e^d − 1 − d, by its series for small d, where the difference would cancel."""
    series = d**2 / 2 * (1 + d / 3 * (1 + d / 4 * (1 + d / 5 * (1 + d / 6))))  # error below 1e-8 for |d| < 0.1
    return jnp.where(jnp.abs(d) < 0.1, series, jnp.expm1(d) - d)


def _others(values: Float[Array, "*c C"], top: Int[Array, ""]) -> Float[Array, "*c C"]:
    """Return per entry the sum of all others.

    For ``top``, the likeliest class, it is summed directly instead of subtracted, so that 1 − p is accurate for p ≈ 1.
    """
    own = (jnp.arange(values.shape[-1]) == top).reshape((1,) * (values.ndim - 1) + (-1,))
    rest = jnp.sum(jnp.where(own, jnp.zeros_like(values), values), axis=-1, keepdims=True)
    return jnp.where(own, rest, values[..., top, None] + (rest - values))
