"""PEFs that are exact combinations of planted components, made from arrays without a model."""

import dataclasses

import numpy as np
from jaxtyping import Float

from npeff_jax._parameters import Parameter, ParameterLayout
from npeff_jax.pefs import FisherKind, Pefs, Schema


@dataclasses.dataclass(frozen=True, eq=False)
class Planted:
    """PEFs with planted components.

    Attributes:
        pefs: PEFs; the F of every example is Σ_j W_ij g_j g_jᵀ, or Σ_j W_ij h_j, with unit Frobenius norm.
        vectors: G or H, (r, m), unit norm.
        coefficients: W, (n, r).
        fishers: F, (n, m, m) or, diagonal, (n, m), in float64.
    """

    pefs: Pefs
    vectors: Float[np.ndarray, "r m"]
    coefficients: Float[np.ndarray, "n r"]
    fishers: Float[np.ndarray, "n *m"]


def planted(
    seed: int = 0, n: int = 60, m: int = 40, r: int = 5, c: int = 3, shared: float = 0.5, noise: float = 0.0
) -> Planted:
    """Make low-rank PEFs with up to ``c`` active components per example, not orthogonal and with overlapping supports.

    Args:
        seed: seed of all random numbers.
        n: number of examples.
        m: number of parameters.
        r: number of components.
        c: number of rows per example. They are rotated at random, so that only the Fisher is planted.
        shared: weight of a direction that is common to all components.
        noise: norm of a normal random vector added to each row.

    Examples:
        >>> task = planted()
        >>> decomposition = npeff_jax.decompose(task.pefs, 5, progress=False)
    """
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
    """Make diagonal PEFs that are sums of known non-negative vectors. The arguments are those of `planted`."""
    rng = np.random.default_rng(seed)
    vectors = (rng.gamma(1.0, size=(r, m)) + shared * rng.random(m)) * (rng.random((r, m)) < 0.4)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    coefficients = rng.gamma(1.0, size=(n, r)) * (rng.random((n, r)) < 0.5) + 1e-3
    norms = np.linalg.norm(coefficients @ vectors, axis=1, keepdims=True)
    coefficients /= norms
    fishers = coefficients @ vectors
    return Planted(pefs_of_rows(fishers[:, None, :], FisherKind.DIAGONAL), vectors, coefficients, fishers)


def pefs_of_rows(
    rows: Float[np.ndarray, "n c m"], kind: FisherKind = FisherKind.LOW_RANK, model: str = "a model"
) -> Pefs:
    """Make `Pefs` from rows, with all non-zeros. There is no model; ``model`` takes the place of its fingerprint."""
    n, c, m = rows.shape
    keep = int((rows != 0).sum(axis=(1, 2)).max())
    values, indices, owners = (np.zeros((n, keep), dtype) for dtype in (np.float32, np.int64, np.int32))
    for i in range(n):
        row, index = np.nonzero(rows[i])
        values[i, : row.size], indices[i, : row.size], owners[i, : row.size] = rows[i, row, index], index, row
    layout = ParameterLayout((Parameter("w", (m,), 0),))
    schema = Schema(kind, {"name": "Planted"}, "none", model, "planted", layout, n, c + 1, keep)
    ones, zeros = np.ones(n, np.float32), np.zeros(n, np.float32)
    n_rows, logits = np.full(n, c, np.int64), np.zeros((n, c + 1), np.float32)
    return Pefs(schema, values, indices, owners, n_rows, ones, logits, ones, zeros, zeros, zeros)
