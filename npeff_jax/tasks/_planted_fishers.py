"""Synthetic PEFs with many planted components: Zipf frequencies, a hierarchy, correlations, overlap and noise.

It corresponds to the synthetic activations in benchmarks of sparse autoencoders. Each example has some active
components with vectors g_j and strengths W_ij; its Fisher is Σ_j W_ij g_j g_jᵀ plus noise, and only the K largest
entries are kept, as for the PEFs of a network.
"""

import dataclasses

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from npeff_jax._parameters import Parameter, ParameterLayout
from npeff_jax.pefs import FisherKind, Pefs, Schema


@dataclasses.dataclass(frozen=True, eq=False)
class PlantedFishers:
    """PEFs with planted components.

    Attributes:
        pefs: sparsified PEFs, with unit Frobenius norm before sparsification.
        vectors: (r, m) sparse, g_j with unit norm.
        coefficients: W, (n, r), in the scale of the normalised Fishers.
        parents: (r,), the component that each component implies; −1 for none.
    """

    pefs: Pefs
    vectors: scipy.sparse.csr_array
    coefficients: Float[np.ndarray, "n r"]
    parents: Int[np.ndarray, "r"]


def planted_fishers(
    n: int = 2000,
    r: int = 128,
    *,
    m: int = 100_000,
    support: int = 512,
    keep: int = 2048,
    mean_active: float = 2.0,
    max_active: int = 4,
    zipf: float = 0.7,
    children: float = 0.25,
    correlated: float = 0.25,
    noise: float = 0.3,
    seed: int = 0,
) -> PlantedFishers:
    """Plant r components in the Fishers of n examples.

    The probability of the component of rank k is proportional to k to the power −``zipf``. A fraction of the components
    are children: an active child implies its parent, and shares half of its support with it. Another fraction form
    pairs: each activates its partner in half of its examples. Strengths are log-normal per component and
    gamma-distributed per example. The rows of an example are rotated at random, so that only the Fisher is planted.

    Args:
        n: number of examples.
        r: number of components.
        m: number of parameters.
        support: number of non-zeros per component, with values from a Student t distribution with 3 degrees of freedom.
        keep: K, entries kept per example over all its rows.
        mean_active: mean number of components drawn per example (about Poisson), before parents and partners.
        max_active: maximum number of active components, and of rows, per example.
        zipf: exponent of the frequencies; 0 for equal frequencies.
        children: fraction of the components that imply a parent.
        correlated: fraction of the components that form correlated pairs.
        noise: norm of the noise in an example's rows relative to that of its planted rows; the noise is spread over as
            many random parameters as a component has.
        seed: seed of all random numbers.

    Raises:
        ValueError: a support larger than m, or fewer than four components.
    """
    if r < 4 or support > m:
        raise ValueError(f"r={r} and support={support}; expected four components or more, on at most m={m} parameters")
    rng = np.random.default_rng(seed)
    parents = _parents(rng, r, children)
    partners = _partners(rng, r, parents, correlated)
    supports, vectors = _vectors(rng, r, m, support, parents)
    frequency = np.arange(1, r + 1) ** -zipf
    frequency = rng.permutation(frequency / frequency.sum())
    scale = rng.lognormal(sigma=0.5, size=r)

    coefficients = np.zeros((n, r), np.float32)
    values, indices, owners = (np.zeros((n, keep), dtype) for dtype in (np.float32, np.int64, np.int32))
    n_rows, kept_energy, fisher_error = np.zeros(n, np.int64), np.zeros(n, np.float32), np.zeros(n, np.float32)
    for i in range(n):
        active = _active(rng, frequency, mean_active, max_active, parents, partners)
        strength = scale[active] * (0.1 + rng.gamma(2.0, size=len(active)))
        noisy = rng.choice(m, support, replace=False)
        columns = np.unique(np.concatenate([*(supports[j] for j in active), noisy]))
        rows = np.zeros((len(active), columns.size))
        for row, (j, w) in enumerate(zip(active, strength, strict=True)):
            rows[row, np.searchsorted(columns, supports[j])] = np.sqrt(w) * vectors[j]
        rows = np.linalg.qr(rng.normal(size=(len(active),) * 2))[0] @ rows
        added = rng.standard_t(3, size=(len(active), support))
        added *= noise * np.linalg.norm(rows) / np.linalg.norm(added)
        rows[:, np.searchsorted(columns, noisy)] += added
        norm = np.linalg.norm(rows @ rows.T)
        rows, coefficients[i, active] = rows / np.sqrt(norm), strength / norm
        kept = np.sort(np.argsort(-np.abs(rows.ravel()), kind="stable")[:keep])
        kept = kept[rows.ravel()[kept] != 0]
        sparse = np.zeros_like(rows)
        sparse.flat[kept] = rows.flat[kept]
        k = slice(0, kept.size)
        values[i, k], indices[i, k], owners[i, k] = rows.flat[kept], columns[kept % columns.size], kept // columns.size
        n_rows[i], kept_energy[i] = len(active), np.sum(sparse**2) / np.sum(rows**2)
        cross = np.linalg.norm(rows @ sparse.T) ** 2  # ‖F − F̂‖² = ‖F‖² − 2 ⟨F, F̂⟩ + ‖F̂‖², and ‖F‖ = 1
        fisher_error[i] = np.sqrt(max(0.0, float(1 - 2 * cross + np.linalg.norm(sparse @ sparse.T) ** 2)))

    layout = ParameterLayout((Parameter("w", (m,), 0),))
    schema = Schema(
        kind=FisherKind.LOW_RANK,
        representation={"name": "Planted"},
        normalization="before",
        model=f"planted_fishers seed={seed}",
        examples=f"planted n={n} r={r} noise={noise}",
        layout=layout,
        n_examples=n,
        n_classes=max_active + 1,
        keep=keep,
    )
    ones, zeros = np.ones(n, np.float32), np.zeros(n, np.float32)
    logits = np.zeros((n, max_active + 1), np.float32)
    pefs = Pefs(schema, values, indices, owners, n_rows, ones, logits, kept_energy, fisher_error, zeros, zeros)
    pointers = np.arange(r + 1) * support
    G = scipy.sparse.csr_array((vectors.ravel(), supports.ravel(), pointers), shape=(r, m))
    return PlantedFishers(pefs, G, coefficients, parents)


def _parents(rng: np.random.Generator, r: int, share: float) -> Int[np.ndarray, "r"]:
    """Draw a parent, itself without a parent, for a fraction of the components; the hierarchy has two levels."""
    order = rng.permutation(r)
    young, rest = np.split(order, [round(share * r)])
    parents = np.full(r, -1)
    parents[young] = rng.choice(rest, size=young.size)
    return parents


def _partners(rng: np.random.Generator, r: int, parents: Int[np.ndarray, "r"], share: float) -> Int[np.ndarray, "r"]:
    """Draw pairs among the components without a parent; −1 for the others."""
    free = rng.permutation(np.flatnonzero(parents < 0))
    pairs = free[: 2 * (min(round(share * r), free.size) // 2)].reshape(-1, 2)
    partners = np.full(r, -1)
    partners[pairs[:, 0]], partners[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    return partners


def _vectors(
    rng: np.random.Generator, r: int, m: int, support: int, parents: Int[np.ndarray, "r"]
) -> tuple[Int[np.ndarray, "r s"], Float[np.ndarray, "r s"]]:
    """Draw ascending supports and values of unit norm. Half of a child's support is on its parent's parameters."""
    supports = np.stack([np.sort(rng.choice(m, support, replace=False)) for _ in range(r)])
    for j in np.flatnonzero(parents >= 0):
        inherited = rng.choice(supports[parents[j]], support // 2, replace=False)
        own = rng.permutation(np.setdiff1d(supports[j], inherited))[: support - inherited.size]
        supports[j] = np.sort(np.concatenate([inherited, own]))
    values = rng.standard_t(3, size=(r, support)).astype(np.float32)
    return supports, values / np.linalg.norm(values, axis=1, keepdims=True)


def _active(
    rng: np.random.Generator,
    frequency: Float[np.ndarray, "r"],
    mean: float,
    most: int,
    parents: Int[np.ndarray, "r"],
    partners: Int[np.ndarray, "r"],
) -> list[int]:
    """Draw one to ``most`` active components by frequency, with parents, and with partners half of the time.

    A child is dropped if there is no room for its parent.
    """
    count = int(np.clip(1 + rng.poisson(max(mean - 1, 0.0)), 1, most))
    active: list[int] = []
    for j in rng.choice(frequency.size, size=count, replace=False, p=frequency).tolist():
        family = [j] if parents[j] < 0 else [j, int(parents[j])]
        if partners[j] >= 0 and rng.random() < 0.5:
            family.append(int(partners[j]))
        new = [k for k in family if k not in active]
        if len(active) + len(new) <= most:
            active += new
        elif not active:
            active += family[: 2 if parents[j] >= 0 else 1][:most]
    return active or [int(np.argmax(np.where(parents < 0, frequency, 0)))]
