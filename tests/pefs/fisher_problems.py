"""Small models, and their Fishers by the definition: NumPy, float64, one example at a time."""

import jax
import jax.numpy as jnp
import numpy as np

import npeff_jax as npeff


def mlp(n_classes=5, n_inputs=4, width=6, seed=0, scale=1.0):
    """A tanh network; ``scale`` on the logits makes predictions confident."""
    rng = np.random.default_rng(seed)
    params = {
        "first": rng.normal(size=(n_inputs, width)).astype(np.float32),
        "second": (scale * rng.normal(size=(width, n_classes))).astype(np.float32),
    }
    return npeff.Model(lambda p, x: jnp.tanh(x @ p["first"]) @ p["second"], jax.tree.map(jnp.asarray, params))


def inputs(n, n_inputs=4, seed=1):
    return np.random.default_rng(seed).normal(size=(n, n_inputs)).astype(np.float32)


def dense(model, x):
    """(J, p) of an `mlp` in float64 by the chain rule written out: no JAX, no cancellation in float32."""
    first, second = (np.asarray(model.params[name], np.float64) for name in ("first", "second"))
    x = np.asarray(x, np.float64)
    hidden = np.tanh(x @ first)
    logits = hidden @ second
    n_classes = logits.size
    to_first = np.einsum("hc,h,i->cih", second, 1 - hidden**2, x).reshape(n_classes, -1)
    to_second = np.einsum("h,cd->chd", hidden, np.eye(n_classes)).reshape(n_classes, -1)
    log_p = logits - logits.max()
    log_p -= np.log(np.exp(log_p).sum())
    return np.concatenate([to_first, to_second], axis=1), log_p


def class_rows(jacobian, log_p):
    """The paper's rows sqrt(p_j) ∇ log p_j, exact for confident predictions: logits are compared with the likeliest."""
    p = np.exp(log_p)
    top = np.argmax(p)
    relative = jacobian - jacobian[top]
    return np.sqrt(p)[:, None] * (relative - p @ relative)


def fisher(model, x):
    rows = class_rows(*dense(model, x))
    return rows.T @ rows


def stacked(pefs):
    """Each example's rows as a dense array."""
    rows = pefs.to_scipy().toarray().astype(np.float64)
    return np.split(rows, np.cumsum(pefs.n_rows)[:-1])
