"""The problems solvers are compared on: a digits network, a Tracr program, a small transformer, planted components."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import npeff_jax as npeff
from npeff_jax._parameters import Parameter, ParameterLayout
from npeff_jax.pefs import FisherKind, Schema


@dataclasses.dataclass(frozen=True)
class Problem:
    """PEFs and how many components to look for."""

    make: Callable[[], npeff.Pefs]
    n_components: int


def digits(n: int, keep: int) -> npeff.Pefs:
    """The convolutional network of the demo, 1,418 parameters."""
    task = npeff.tasks.digits(progress=False)
    return npeff.compute_pefs(task.model, task.train_images[:n], npeff.LowRank(), keep=keep, progress=False)


def inference(n: int, keep: int) -> npeff.Pefs:
    """The demo's program of natural language inference, compiled by Tracr: 759,960 parameters."""
    task = npeff.tasks.inference(n_examples=n, seed=0)
    return npeff.compute_pefs(task.model, task.examples, npeff.LowRank(), keep=keep, progress=False)


def counting(n: int, keep: int, length: int = 6) -> npeff.Pefs:
    """How often does the last token occur? Compiled by Tracr, sharpened by a temperature."""
    from tracr.compiler.compiling import compile_rasp_to_model
    from tracr.rasp import rasp

    same = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
    compiled = compile_rasp_to_model(rasp.SelectorWidth(same), set("abcd"), max_seq_len=length)
    model = npeff.models.from_tracr(compiled, temperature=0.3)
    words = np.random.default_rng(0).choice(list("abcd"), size=(n, length))
    examples = np.stack([np.asarray(npeff.models.encode_tokens(compiled, list(word))) for word in words])
    return npeff.compute_pefs(model, examples, npeff.LowRank(), keep=keep, progress=False)


def transformer(n: int, keep: int, width: int = 48) -> npeff.Pefs:
    """Two attention blocks on the eight rows of a digit's image as tokens, trained."""
    task = npeff.tasks.digits(steps=1, progress=False)
    images, labels = task.train_images.reshape(-1, 8, 8), task.train_labels
    keys = iter(jax.random.split(jax.random.key(0), 20))
    dense = lambda a, b: jax.random.normal(next(keys), (a, b)) / a**0.5  # noqa: E731
    names = ("q", "k", "v", "o")
    blocks = [
        {name: dense(width, width) for name in names} | {"up": dense(width, 2 * width), "down": dense(2 * width, width)}
        for _ in range(2)
    ]
    params = {"embed": dense(8, width), "place": dense(8, width), "blocks": blocks, "head": dense(width, 10)}

    def logits(params, image):
        x = image @ params["embed"] + params["place"]
        for block in params["blocks"]:
            y = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
            q, k, v = ((y @ block[name]).reshape(8, 4, -1) for name in ("q", "k", "v"))
            weights = jax.nn.softmax(jnp.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5)
            x = x + jnp.einsum("hij,jhd->ihd", weights, v).reshape(8, -1) @ block["o"]
            x = x + jax.nn.gelu(x @ block["up"]) @ block["down"]
        return x.mean(0) @ params["head"]

    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        def loss(p):
            found = jax.vmap(logits, (None, 0))(p, images)
            return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(60):
        params, state = step(params, state)
    return npeff.compute_pefs(npeff.Model(logits, params), images[:n], npeff.LowRank(), keep=keep, progress=False)


def planted(n: int, m: int, r: int, seed: int = 0, c: int = 3) -> npeff.Pefs:
    """Non-orthogonal, overlapping components under noise, every example's rows rotated at random."""
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(r, m)) + rng.normal(size=m)) * (rng.random((r, m)) < 0.1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    examples = []
    for _ in range(n):
        active = rng.choice(r, size=rng.integers(1, c + 1), replace=False)
        rows = np.zeros((c, m))
        rows[: active.size] = np.sqrt(0.1 + rng.gamma(2.0, size=active.size))[:, None] * vectors[active]
        rows = np.linalg.qr(rng.normal(size=(c, c)))[0] @ rows
        rows += 0.3 * rng.normal(size=(c, m)) * (rng.random((c, m)) < 0.1) / np.sqrt(0.1 * m)
        examples.append(rows / np.sqrt(np.linalg.norm(rows @ rows.T)))
    return from_rows(np.stack(examples), FisherKind.LOW_RANK, keep=1024)


def user_size(
    n: int,
    *,
    c: int = 3,
    keep: int = 8192,
    m: int = 1_000_000,
    r: int = 128,
    support: int = 16_384,
    seed: int = 0,
    among: int | None = None,
    examples_seed: int | None = None,
) -> npeff.Pefs:
    """Planted components of the size that a user has: each over ``support`` of m parameters, Student-t values.

    One to three components per example, rotated at random, under noise of half their norm. Never dense. Examples have
    the first ``among`` of the r components only, if that is given; an ``examples_seed`` draws other examples of the
    same components.
    """
    rng = np.random.default_rng(seed)
    where = np.stack([np.sort(rng.choice(m, support, replace=False)) for _ in range(r)])
    what = rng.standard_t(3, size=(r, support)).astype(np.float32)
    what /= np.linalg.norm(what, axis=1, keepdims=True)
    rng = rng if examples_seed is None else np.random.default_rng([seed, examples_seed])
    values, indices = np.zeros((n, keep), np.float32), np.zeros((n, keep), np.int32)
    rows = np.zeros((n, keep), np.int16)
    for i in range(n):
        active = rng.choice(among or r, size=rng.integers(1, c + 1), replace=False)
        noise = rng.choice(m, support, replace=False)
        columns = np.unique(np.concatenate([where[active].ravel(), noise]))
        A = np.zeros((c, columns.size), np.float32)
        for j, component in enumerate(active):
            strength = 0.1 + rng.gamma(2.0)
            A[j, np.searchsorted(columns, where[component])] = np.sqrt(strength) * what[component]
        A = np.linalg.qr(rng.normal(size=(c, c)))[0].astype(np.float32) @ A
        spread = 0.5 * rng.standard_t(3, size=(c, support)).astype(np.float32) / np.sqrt(c * support)
        A[:, np.searchsorted(columns, noise)] += spread
        A /= np.sqrt(np.linalg.norm(A @ A.T))
        flat = A.ravel()
        kept = np.sort(np.argpartition(-np.abs(flat), keep - 1)[:keep])
        values[i], indices[i], rows[i] = flat[kept], columns[kept % columns.size], kept // columns.size
    return from_entries(values, indices, rows, FisherKind.LOW_RANK, c, m)


def user_size_diagonal(
    n: int, *, keep: int = 4096, m: int = 300_000, r: int = 64, support: int = 16_384, seed: int = 0
) -> npeff.Pefs:
    """The same for diagonal PEFs: one to three non-negative components per example, multiplied by noise."""
    rng = np.random.default_rng(seed)
    where = np.stack([np.sort(rng.choice(m, support, replace=False)) for _ in range(r)])
    what = (rng.standard_t(3, size=(r, support)) ** 2).astype(np.float32)
    what /= np.linalg.norm(what, axis=1, keepdims=True)
    values, indices = np.zeros((n, keep), np.float32), np.zeros((n, keep), np.int32)
    for i in range(n):
        active = rng.choice(r, size=rng.integers(1, 4), replace=False)
        columns = np.unique(where[active].ravel())
        x = np.zeros(columns.size, np.float32)
        for component in active:
            x[np.searchsorted(columns, where[component])] += (0.1 + rng.gamma(2.0)) * what[component]
        x *= rng.gamma(4.0, 0.25, size=x.size)
        kept = np.sort(np.argpartition(-x, keep - 1)[:keep])
        values[i], indices[i] = x[kept] / np.linalg.norm(x), columns[kept]
    return from_entries(values, indices, np.zeros((n, keep), np.int16), FisherKind.DIAGONAL, 1, m)


def from_entries(
    values: np.ndarray, indices: np.ndarray, rows: np.ndarray, kind: FisherKind, c: int, m: int
) -> npeff.Pefs:
    """Entries (n, K) of c rows per example, sorted by row and parameter, as `Pefs`."""
    n, keep = values.shape
    layout = ParameterLayout((Parameter("w", (m,), 0),))
    schema = Schema(kind, {"name": "Planted"}, "before", "planted", "planted", layout, n, c + 1, keep)
    ones, zeros = np.ones(n, np.float32), np.zeros(n, np.float32)
    logits, n_rows = np.zeros((n, c + 1), np.float32), np.full(n, c)
    return npeff.Pefs(schema, values, indices, rows, n_rows, ones, logits, ones, zeros, zeros, zeros)


def from_rows(rows: np.ndarray, kind: FisherKind, keep: int) -> npeff.Pefs:
    """Rows (n, c, m) as `Pefs` of the ``keep`` largest entries an example."""
    n, c, m = rows.shape
    flat = rows.reshape(n, -1)
    keep = min(keep, flat.shape[1])
    chosen = np.sort(np.argpartition(-np.abs(flat), keep - 1, axis=1)[:, :keep], axis=1)
    values = np.take_along_axis(flat, chosen, axis=1).astype(np.float32)
    return from_entries(values, chosen % m, chosen // m, kind, c, m)


STUDY = {
    "digits": Problem(lambda: digits(300, 512), 16),
    "tracr": Problem(lambda: counting(500, 2048), 16),
    "transformer": Problem(lambda: transformer(300, 1024), 16),
    "planted": Problem(lambda: planted(400, 4000, 16), 16),
}
"""Small: many solvers from many seeds."""

REAL = {
    "digits": Problem(lambda: digits(1200, 2048), 24),
    "tracr": Problem(lambda: inference(1000, 2048), 32),
    "transformer": Problem(lambda: transformer(1200, 2048), 24),
    "planted": Problem(lambda: planted(1200, 20_000, 24), 24),
    "small digits": Problem(lambda: digits(600, 1024), 24),
}
"""Of the size of the demos, which is what a person waits for (2,048 entries hold all of a PEF of the Tracr program);
and one where compilation weighs most."""
