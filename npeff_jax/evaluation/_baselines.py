"""Baselines that replace Fishers by activations or loss gradients, and cluster them (section 3.4)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from npeff_jax._checks import check_integer
from npeff_jax._examples import count_examples, first_example, take_examples
from npeff_jax._html import facts_html, table_html
from npeff_jax._parameters import ParameterSpace
from npeff_jax._types import Examples, LogitsFn, PyTree
from npeff_jax.models import IntermediatesFn, Model
from npeff_jax.perturbation import batches

HeadFn = Callable[[PyTree, jax.Array], jax.Array]
"""``(params, activation) -> (C,)``: the remaining layers, from one example's activation to its logits."""


def activations(model: Model, examples: Examples, name: str, *, batch_size: int = 256) -> Float[np.ndarray, "n d"]:
    """Compute one named intermediate of every example, flattened.

    Args:
        model: a model with ``intermediates_fn``.
        examples: n examples.
        name: name of the intermediate.
        batch_size: examples per forward pass.

    Raises:
        ValueError: the model has no ``intermediates_fn``, or no intermediate of that name.
    """
    if model.intermediates_fn is None:
        raise ValueError(
            "this model exposes no intermediates; pass Model(..., intermediates_fn=f), a function (params, example) -> "
            "{name: array}"
        )
    examples = take_examples(examples)
    n, size = count_examples(examples), check_integer("batch_size", batch_size)
    known = jax.eval_shape(model.intermediates_fn, model.params, first_example(examples))
    if name not in known:
        raise ValueError(f"no intermediate is named {name!r}; this model has {sorted(known)}")
    found = []
    run = model.program(_activations, model.intermediates_fn, name)
    for batch in batches(examples, min(size, n)):
        found.append(np.asarray(run(model.params, batch)))
    return np.concatenate(found)[:n]


def logit_gradients(
    model: Model, values: Float[np.ndarray, "n d"], head: HeadFn, *, batch_size: int = 256
) -> Float[np.ndarray, "n C d"]:
    """Compute ∂ logits / ∂ activation of every example, as needed by `tcav`.

    Args:
        model: the model whose parameters are passed to ``head``.
        values: activations.
        head: the remaining layers of the model.
        batch_size: examples per batch.
    """
    run, size = model.program(_jacobians, head), check_integer("batch_size", batch_size)
    found = [np.asarray(run(model.params, batch)) for batch in batches(values, min(size, len(values)))]
    return np.concatenate(found)[: len(values)]


def gradient_features(
    model: Model, examples: Examples, *, n_features: int = 512, seed: int = 0, batch_size: int = 32
) -> Float[np.ndarray, "n f"]:
    """Compute the normalised gradient of log p of each example's prediction, randomly projected, for clustering.

    The projection is a count sketch, which preserves inner products in expectation with an error of about
    1/sqrt(n_features) and needs no projection matrix.

    Args:
        model: a model with more than one logit.
        examples: n examples.
        n_features: f, dimension of the projected gradients.
        seed: seed of the projection.
        batch_size: examples whose gradients are held at once.
    """
    examples = take_examples(examples)
    n, n_features = count_examples(examples), check_integer("n_features", n_features)
    size = min(check_integer("batch_size", batch_size), n)
    rng = np.random.default_rng(check_integer("seed", seed, 0))
    bucket = jnp.asarray(rng.integers(0, n_features, model.space.size), jnp.int32)
    sign = jnp.asarray(rng.choice([-1.0, 1.0], model.space.size), jnp.float32)
    run = model.program(_sketch, model.logits_fn, model.space, n_features)
    found = [np.asarray(run(model.params, batch, bucket, sign)) for batch in batches(examples, size)]
    return np.concatenate(found)[:n]


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
    """k clusters of n examples.

    Attributes:
        assignment: (n,), the cluster of each example.
        distances: (n,), distance of each example to its centroid.
        centroids: (k, d), the centroids.
    """

    assignment: Int[np.ndarray, "n"]
    distances: Float[np.ndarray, "n"]
    centroids: Float[np.ndarray, "k d"]

    @property
    def membership(self) -> Float[np.ndarray, "n k"]:
        """One-hot assignments, which the paper compares with the coefficients of components (`compare_runs`)."""
        return np.eye(len(self.centroids))[self.assignment]

    @property
    def coefficients(self) -> Float[np.ndarray, "n k"]:
        """1 / (1 + distance) inside the cluster and 0 outside, which ranks members for `top_examples`."""
        return self.membership / (1 + self.distances[:, None])

    def _repr_html_(self) -> str:
        sizes = np.bincount(self.assignment, minlength=len(self.centroids))
        facts = [("clusters", len(self.centroids)), ("examples", len(self.assignment))]
        rows = [
            (int(k), int(sizes[k]), float(self.distances[self.assignment == k].mean()))
            for k in np.argsort(-sizes, kind="stable")
            if sizes[k]
        ]
        heads = ("cluster", "examples", "mean distance to its centroid")
        return facts_html("Clusters of examples", facts, table_html(heads, rows))


def cluster(features: Float[np.ndarray, "n d"], n_clusters: int = 128, *, seed: int = 0) -> Clusters:
    """Cluster features by k-means (scikit-learn).

    Args:
        features: activations, or gradient features.
        n_clusters: k; 128 in the paper.
        seed: seed of the initial centroids.

    Raises:
        ValueError: more clusters than examples.

    Examples:
        >>> clusters = cluster(activations(model, examples, "hidden"), 3)
        >>> compare_runs(clusters.membership, decomposition).similarities.shape
        (3, 3)
    """
    from sklearn.cluster import KMeans

    n_clusters = check_integer("n_clusters", n_clusters, 1, len(features))
    found = KMeans(n_clusters, n_init=4, random_state=seed).fit(features)
    distances = np.linalg.norm(features - found.cluster_centers_[found.labels_], axis=1)
    return Clusters(found.labels_.astype(np.int64), distances, found.cluster_centers_)


def _activations(params: PyTree, batch: Examples, intermediates_fn: IntermediatesFn, name: str) -> jax.Array:
    return jax.vmap(lambda x: jnp.ravel(intermediates_fn(params, x)[name]))(batch)


def _jacobians(params: PyTree, values: jax.Array, head: HeadFn) -> jax.Array:
    return jax.vmap(jax.jacrev(lambda value: head(params, value)))(values)


def _sketch(
    params: PyTree,
    batch: Examples,
    bucket: jax.Array,
    sign: jax.Array,
    logits_fn: LogitsFn,
    space: ParameterSpace,
    n_features: int,
) -> jax.Array:
    def one(x: PyTree) -> jax.Array:
        def log_p(selected: tuple[jax.Array, ...]) -> jax.Array:
            return jnp.max(jax.nn.log_softmax(logits_fn(space.join(params, selected), x)))

        gradient = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.grad(log_p)(space.select(params))])
        unit = gradient / jnp.maximum(jnp.linalg.norm(gradient), jnp.finfo(gradient.dtype).tiny)
        return jax.ops.segment_sum(sign * unit, bucket, n_features)

    return jax.vmap(one)(batch)
