"""The rivals of NPEFF: each gives directions, and a coefficient of any example for each of them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse
import scipy.sparse.linalg
import sklearn.cluster
import sklearn.decomposition

import npeff_jax as npeff

N_FEATURES = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """What methods see of some examples.

    Attributes:
        pefs: what NPEFF decomposes.
        rows: (N, m), the PEFs' rows.
        owner: (N,), the example of each row.
        gradients: (n, m), unit gradients of the log-probability of the predicted class.
        activations: (n, d).
        of_shift: makes `shifted`.
        examples: of the model.
        readable: what a person can read off them.

    Planted Fishers have no model, and none of the last four.
    """

    pefs: npeff.Pefs
    rows: scipy.sparse.csr_array
    owner: np.ndarray
    gradients: scipy.sparse.csr_array
    activations: Any = None
    of_shift: Callable[[], npeff.Pefs] | None = None
    examples: Any = None
    readable: Any = None

    @functools.cached_property
    def shifted(self) -> npeff.Pefs:
        """PEFs of the model that adds a shift to the activations."""
        assert self.of_shift is not None
        return self.of_shift()

    def effects(self, directions: np.ndarray) -> np.ndarray:
        """Compute dᵀF_i d of each example and direction."""
        return np.add.reduceat(np.square(np.asarray(self.rows @ directions.T)), first_rows(self.owner), axis=0)

    def features(self, scale: np.ndarray | None = None) -> np.ndarray:
        """Gradients, scaled per parameter if asked to, at unit norm, in a random projection."""
        gradients = self.gradients if scale is None else unit_rows(self.gradients.multiply(scale).tocsr())
        m, random = gradients.shape[1], np.random.default_rng(0)  # the same projection for all examples and seeds
        signs, places = random.choice([-1.0, 1.0], m), random.integers(0, N_FEATURES, m)
        sketch = scipy.sparse.csr_array((signs, (np.arange(m), places)), shape=(m, N_FEATURES))
        return np.asarray((gradients @ sketch).toarray(), np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What a method found in some examples: a coefficient of any example for each direction, and the directions."""

    encode: Callable[[Side], np.ndarray]
    directions: np.ndarray


def npeff_components(side: Side, r: int, seed: int) -> Found:
    found = npeff.decompose(_problem(side, r), r, seed=seed, progress=False)
    directions = np.zeros((r, side.rows.shape[1]), np.float32)
    directions[:, found.parameter_indices] = found.pseudo_fishers
    return Found(lambda other: npeff.fit_coefficients(found, other.pefs).coefficients, directions)


@functools.cache
def _problem(side: Side, r: int) -> npeff.Problem:
    return npeff.Problem.of(side.pefs, n_components=r)


def kmeans_gradients(side: Side, r: int, seed: int) -> Found:
    found = sklearn.cluster.KMeans(r, n_init=4, random_state=seed).fit(side.features())
    return Found(lambda other: _closeness(found, other.features()), _means(side.gradients, found.labels_, r))


def nmf_gradients(side: Side, r: int, seed: int) -> Found:
    """Of the positive and the negative parts of projected gradients."""

    def parts(other: Side) -> np.ndarray:
        features = other.features()
        return np.maximum(np.concatenate([features, -features], axis=1), 0)

    # With a random start, or "found again" would compare a method without a seed with itself.
    found = sklearn.decomposition.NMF(r, init="nndsvdar", random_state=seed, max_iter=300)
    weights = found.fit_transform(parts(side))
    return Found(lambda other: found.transform(parts(other)), np.asarray((side.gradients.T @ weights).T))


def dictionary(side: Side, r: int, seed: int) -> Found:
    """Gradients preconditioned by the diagonal Fisher, in a sparse dictionary, as gradient atoms are."""
    fisher = np.asarray(side.rows.multiply(side.rows).sum(axis=0)).ravel() / side.gradients.shape[0]
    scale = 1 / np.sqrt(fisher + 0.1 * fisher[fisher > 0].mean())
    found = sklearn.decomposition.MiniBatchDictionaryLearning(
        r, alpha=0.1, positive_code=True, fit_algorithm="cd", transform_algorithm="lasso_cd", random_state=seed,
        max_iter=30,
    )  # fmt: skip
    codes = found.fit_transform(side.features(scale))
    directions = np.asarray((side.gradients.T @ codes).T) * scale**2
    return Found(lambda other: np.maximum(found.transform(other.features(scale)), 0), directions)


def pca(side: Side, r: int, seed: int) -> Found:
    """The leading eigenvectors of the sum of all Fishers: the same whatever the seed."""
    directions = _leading(side, r)
    return Found(lambda other: other.effects(directions), directions)


@functools.lru_cache(maxsize=2)  # of a problem's two sides
def _leading(side: Side, r: int) -> np.ndarray:
    start = np.random.default_rng(0).normal(size=min(side.rows.shape))
    return scipy.sparse.linalg.svds(side.rows.astype(np.float64), r, v0=start)[2]


def class_means(side: Side, r: int, seed: int) -> Found:
    """A direction for each class that is predicted at all, the most frequent ones where these are more than r."""
    predicted = np.asarray(side.pefs.logits).argmax(axis=1)
    classes, counts = np.unique(predicted, return_counts=True)
    kept = np.sort(classes[np.argsort(-counts, kind="stable")[:r]])
    member = (predicted[:, None] == kept).astype(np.float64)
    directions = np.asarray((side.gradients.T @ member).T)
    return Found(lambda other: np.maximum(np.asarray(other.gradients @ directions.T), 0), directions)


def random_directions(side: Side, r: int, seed: int) -> Found:
    """Combinations of all rows: in the span in which the components lie."""
    random = np.random.default_rng(seed)
    directions = np.asarray(side.rows.T @ random.normal(size=(side.rows.shape[0], r))).T
    return Found(lambda other: other.effects(directions), directions)


def kmeans_activations(side: Side, r: int, seed: int) -> Found:
    found = sklearn.cluster.KMeans(r, n_init=4, random_state=seed).fit(side.activations)
    directions = found.cluster_centers_ - side.activations.mean(axis=0)
    return Found(lambda other: _closeness(found, other.activations), directions)


def nmf_activations(side: Side, r: int, seed: int) -> Found:
    """Of what activations are above zero: after a ReLU all of them."""
    activations = np.maximum(side.activations, 0)
    rank = min(r, int(np.linalg.matrix_rank(activations)))
    found = sklearn.decomposition.NMF(r, init="nndsvdar" if r <= rank else "random", random_state=seed, max_iter=300)
    found.fit(activations)
    return Found(lambda other: found.transform(np.maximum(other.activations, 0)), found.components_)


def sae_activations(side: Side, r: int, seed: int) -> Found:
    """A sparse autoencoder with an L1 penalty, 3,000 full-batch steps of Adam."""
    mean, scale = side.activations.mean(axis=0), max(float(side.activations.std()), 1e-6)
    x = jnp.asarray((side.activations - mean) / scale, jnp.float32)
    key = jax.random.key(seed)
    decoder = jax.random.normal(key, (r, x.shape[1])) / np.sqrt(x.shape[1])
    params = {"decoder": decoder, "encoder": decoder.T, "bias": jnp.zeros(r), "offset": jnp.zeros(x.shape[1])}

    def code(params: dict, x: jax.Array) -> jax.Array:
        return jax.nn.relu((x - params["offset"]) @ params["encoder"] + params["bias"])

    def loss(params: dict) -> jax.Array:
        unit = params["decoder"] / jnp.linalg.norm(params["decoder"], axis=1, keepdims=True)
        codes = code(params, x)
        error = jnp.square(x - params["offset"] - codes @ unit).sum(axis=1)
        return (error + 0.3 * codes.sum(axis=1)).mean()

    optimizer = optax.adam(3e-3)

    @jax.jit
    def train(params: dict) -> dict:
        def step(carry: tuple, _: None) -> tuple:
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), None, 3000)[0][0]

    params = train(params)
    return Found(
        lambda other: np.asarray(code(params, jnp.asarray((other.activations - mean) / scale, jnp.float32))),
        np.asarray(params["decoder"]),
    )


METHODS: dict[str, Callable[[Side, int, int], Found]] = {
    "NPEFF": npeff_components,
    "k-means of gradients": kmeans_gradients,
    "NMF of gradients": nmf_gradients,
    "dictionary of preconditioned gradients": dictionary,
    "PCA of Fishers": pca,
    "class-wise mean gradients": class_means,
    "random directions in the span": random_directions,
    "k-means of activations": kmeans_activations,
    "NMF of activations": nmf_activations,
    "sparse autoencoder of activations": sae_activations,
}


def _closeness(found: sklearn.cluster.KMeans, features: np.ndarray) -> np.ndarray:
    """1 / (1 + distance) inside a cluster and 0 outside."""
    distances = found.transform(features)
    return np.eye(distances.shape[1])[distances.argmin(axis=1)] / (1 + distances)


def _means(gradients: scipy.sparse.csr_array, groups: np.ndarray, k: int) -> np.ndarray:
    return np.asarray((gradients.T @ np.eye(k)[groups]).T)


def first_rows(owner: np.ndarray) -> np.ndarray:
    """Return the position of each example's first row."""
    return np.flatnonzero(np.diff(owner, prepend=-1))


def unit_rows(rows: Any) -> scipy.sparse.csr_array:
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return scipy.sparse.csr_array(scipy.sparse.diags_array(1 / np.where(norms > 0, norms, 1)) @ rows)
