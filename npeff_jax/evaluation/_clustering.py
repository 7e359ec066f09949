"""The k-means baseline: concepts as clusters of examples in some feature space (section 3.4, after Ghorbani et al.)."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from npeff_jax._checks import check_in_range
from npeff_jax._html import facts_html, table_html


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
    """k clusters of n examples.

    Attributes:
        assignment: (n,), the cluster of each example.
        distances: (n,), to its centroid.
        centroids: (k, d).
    """

    assignment: Int[np.ndarray, "n"]
    distances: Float[np.ndarray, "n"]
    centroids: Float[np.ndarray, "k d"]

    @property
    def membership(self) -> Float[np.ndarray, "n k"]:
        """Zeros and ones: what the paper compares with components' coefficients (`compare_runs`)."""
        return np.eye(len(self.centroids))[self.assignment]

    @property
    def coefficients(self) -> Float[np.ndarray, "n k"]:
        """1 / (1 + distance) inside the cluster and 0 outside: ranks members by distance to the centroid
        (`top_examples`).
        """
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
    """k-means, by scikit-learn.

    Args:
        features: activations, or gradient features.
        n_clusters: k, 128 in the paper.
        seed: of the starting centroids.

    Raises:
        ValueError: more clusters than examples.

    Examples:
        >>> clusters = cluster(activations(model, examples, "pooled"))  # doctest: +SKIP
        >>> compare_runs(clusters.membership, decomposition)  # doctest: +SKIP
    """
    from sklearn.cluster import KMeans

    check_in_range("n_clusters", n_clusters, 1, len(features))
    found = KMeans(n_clusters, n_init=4, random_state=seed).fit(features)
    distances = np.linalg.norm(features - found.cluster_centers_[found.labels_], axis=1)
    return Clusters(found.labels_.astype(np.int64), distances, found.cluster_centers_)
