"""Problems with a known answer, built here from arrays: no model, no library code."""

import dataclasses

import numpy as np
import scipy.optimize

from npeff_jax._parameters import Parameter, ParameterLayout
from npeff_jax.pefs import Kind, Pefs, Schema


@dataclasses.dataclass(frozen=True, eq=False)
class Planted:
    """PEFs that are exact combinations of known components.

    Attributes:
        pefs: with every row rotated at random inside its example.
        vectors: G or H, (r, m), unit norm.
        coefficients: W, (n, r).
        fishers: (n, m, m) or, diagonal, (n, m): what the PEFs stand for, in float64.
    """

    pefs: Pefs
    vectors: np.ndarray
    coefficients: np.ndarray
    fishers: np.ndarray


def planted(
    seed: int = 0, n: int = 60, m: int = 40, r: int = 5, c: int = 3, shared: float = 0.5, noise: float = 0.0
) -> Planted:
    """Low-rank PEFs of up to ``c`` active components an example, non-orthogonal and with overlapping supports."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=m)
    vectors = (rng.normal(size=(r, m)) + shared * common) * (rng.random((r, m)) < 0.4)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    coefficients, examples = np.zeros((n, r)), []
    for i in range(n):
        active = rng.choice(r, size=rng.integers(1, c + 1), replace=False)
        coefficients[i, active] = 0.1 + rng.gamma(2.0, size=active.size)
        rows = np.zeros((c, m))
        rows[: active.size] = np.sqrt(coefficients[i, active])[:, None] * vectors[active]
        rotation, _ = np.linalg.qr(rng.normal(size=(c, c)))
        rows = rotation @ rows + noise * rng.normal(size=(c, m)) / np.sqrt(m)
        norm = np.linalg.norm(rows @ rows.T)
        coefficients[i] /= norm
        examples.append(rows / np.sqrt(norm))
    rows = np.stack(examples)
    return Planted(pefs_of_rows(rows), vectors, coefficients, np.einsum("icj,ick->ijk", rows, rows))


def planted_diagonal(seed: int = 0, n: int = 60, m: int = 40, r: int = 5, shared: float = 0.0) -> Planted:
    """Diagonal PEFs that are sums of known non-negative vectors."""
    rng = np.random.default_rng(seed)
    vectors = (rng.gamma(1.0, size=(r, m)) + shared * rng.random(m)) * (rng.random((r, m)) < 0.4)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    coefficients = rng.gamma(1.0, size=(n, r)) * (rng.random((n, r)) < 0.5) + 1e-3
    norms = np.linalg.norm(coefficients @ vectors, axis=1, keepdims=True)
    coefficients /= norms
    fishers = coefficients @ vectors
    return Planted(pefs_of_rows(fishers[:, None, :], Kind.DIAGONAL), vectors, coefficients, fishers)


def pefs_of_rows(rows: np.ndarray, kind: Kind = Kind.LOW_RANK, model: str = "a model") -> Pefs:
    """Rows (n, c, m) as `Pefs`, every non-zero kept."""
    n, c, m = rows.shape
    keep = int((rows != 0).sum(axis=(1, 2)).max())
    values, indices, owners = (np.zeros((n, keep), dtype) for dtype in (np.float32, np.int64, np.int32))
    for i in range(n):
        row, index = np.nonzero(rows[i])
        values[i, : row.size], indices[i, : row.size], owners[i, : row.size] = rows[i, row, index], index, row
    layout = ParameterLayout((Parameter("w", (m,), 0),))
    representation = {"name": "Planted"}
    schema = Schema(kind, representation, "none", model, "planted", layout, n, c + 1, keep)
    ones, zeros = np.ones(n, np.float32), np.zeros(n, np.float32)
    n_rows = np.full(n, c, np.int64)
    return Pefs(
        schema, values, indices, owners, n_rows, ones, np.zeros((n, c + 1), np.float32), ones, zeros, zeros, zeros
    )


def best_cosines(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """|cosine| of every true vector with the found one that an optimal matching gives it."""
    norms = np.maximum(np.linalg.norm(found, axis=1), 1e-30)  # a dead component matches nothing
    cosines = np.abs(found @ truth.T) / norms[:, None] / np.linalg.norm(truth, axis=1)
    i, j = scipy.optimize.linear_sum_assignment(-cosines)
    return cosines[i, j]


def oracle_loss(fishers: np.ndarray, W: np.ndarray, G: np.ndarray) -> float:
    """‖F − Σ W H‖² / ‖F‖², by forming every matrix, in float64."""
    W, G = np.asarray(W, np.float64), np.asarray(G, np.float64)
    H = np.einsum("rj,rk->rjk", G, G) if fishers.ndim == 3 else G
    return float(np.sum((fishers - np.tensordot(W, H, axes=1)) ** 2) / np.sum(fishers**2))
