"""A model of three disjoint sub-networks, and hand-made decompositions of it, for tests of perturbations.

Every example uses one sub-network, so the truth is known: a perturbation inside one moves its examples and no others.
"""

import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax import Decomposition, FisherKind, History, Model, Pefs
from npeff_jax.pefs import Schema

FEATURES, CLASSES, BLOCKS = 4, 3, 3


def logits_fn(params, example):
    """Each sub-network sees the features only where the example's gate is open."""
    weights = jnp.stack([params[f"block{b}"] for b in range(BLOCKS)])
    return jnp.einsum("b,f,bfc->c", example["gate"], example["x"], weights)


def make_model(seed=0):
    rng = np.random.default_rng(seed)
    params = {f"block{b}": jnp.asarray(rng.normal(size=(FEATURES, CLASSES)), jnp.float32) for b in range(BLOCKS)}
    return Model(logits_fn, params)


def make_examples(n, seed=0, leak=0.0):
    """N examples, block by turns; ``leak`` opens the other gates a little."""
    rng = np.random.default_rng(seed)
    block = np.arange(n) % BLOCKS
    gate = np.where(np.eye(BLOCKS, dtype=bool)[block], 1.0, leak).astype(np.float32)
    return {"x": rng.normal(size=(n, FEATURES)).astype(np.float32), "gate": gate}, block


def oracle_kl(params, delta, examples):
    """KL(p_θ ‖ p_{θ+δ}) of every example in float64 NumPy."""

    def log_p(p):
        weights = np.stack([np.asarray(p[f"block{b}"], np.float64) for b in range(BLOCKS)])
        z = np.einsum("nb,nf,bfc->nc", examples["gate"].astype(np.float64), examples["x"].astype(np.float64), weights)
        return z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)

    before = log_p(params)
    after = log_p({name: np.asarray(p, np.float64) + np.asarray(delta[name], np.float64) for name, p in params.items()})
    return np.sum(np.exp(before) * (before - after), axis=1)


def oracle_fisher(params, example):
    """F = Σ_j p_j ∇log p_j ∇log p_jᵀ of one example as a dense (m, m) float64 matrix."""
    weights = np.stack([np.asarray(params[f"block{b}"], np.float64) for b in range(BLOCKS)])
    z = np.einsum("b,f,bfc->c", example["gate"].astype(np.float64), example["x"].astype(np.float64), weights)
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    inputs = np.einsum("b,f->bf", example["gate"], example["x"]).reshape(-1).astype(np.float64)
    return np.kron(np.outer(inputs, inputs), np.diag(p) - np.outer(p, p))


def schema_of(model, kind=FisherKind.LOW_RANK, n=1, normalization="before"):
    m = model.space.size
    representation = {"name": "LowRank" if kind is FisherKind.LOW_RANK else "Diagonal"}
    digest = model.fingerprint
    return Schema(kind, representation, normalization, digest, "", model.space.layout, n, CLASSES, m * (CLASSES - 1))


def make_decomposition(model, vectors, coefficients, kind=FisherKind.LOW_RANK, indices=None, normalization="before"):
    """A decomposition with the given pseudo-Fisher vectors, brought to unit norm."""
    vectors = np.asarray(vectors, np.float32)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    indices = np.arange(vectors.shape[1]) if indices is None else indices
    history = History(np.array([0]), np.array([0.0]), np.array([0.0]))
    schema = schema_of(model, kind, len(coefficients), normalization)
    return Decomposition(schema, np.asarray(coefficients, np.float32), unit, indices, history, "made by hand", {})


def block_vectors(seed=0):
    """One vector inside each sub-network: components that are known to be separable."""
    rng = np.random.default_rng(seed)
    size = FEATURES * CLASSES
    vectors = np.zeros((BLOCKS, BLOCKS * size))
    for b in range(BLOCKS):
        vectors[b, b * size : (b + 1) * size] = rng.normal(size=size)
    return vectors


def make_pefs(model, examples, labels=None, kind=FisherKind.LOW_RANK):
    """PEFs whose norms and logits are right; their rows are left empty, because nothing here reads them."""
    n = len(examples["x"])
    fishers = [oracle_fisher(model.params, jax.tree.map(lambda leaf, i=i: leaf[i], examples)) for i in range(n)]
    norms = np.array([np.linalg.norm(f) for f in fishers], np.float32)
    empty, ones, zeros = np.zeros((n, 1), np.float32), np.ones(n, np.float32), np.zeros(n, np.float32)
    index = np.zeros((n, 1), np.int32)
    logits = np.asarray(jax.jit(jax.vmap(model.logits_fn, (None, 0)))(model.params, examples))
    schema = schema_of(model, kind, n)
    rows = np.ones(n, np.int64)
    return Pefs(schema, empty, index, index, rows, norms, logits, ones, zeros, zeros, zeros, labels)
