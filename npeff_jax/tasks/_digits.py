"""A small convolutional network trained on scikit-learn's digits: real images without a download."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from npeff_jax._extras import needs
from npeff_jax._progress import Progress, progress_bar
from npeff_jax._types import PyTree
from npeff_jax.models import Model, from_linen


@dataclasses.dataclass(frozen=True, eq=False)
class Digits:
    """A trained network, its training images and held-out images.

    Attributes:
        model: logits of the ten digits for one image (8, 8, 1).
        train_images: (n, 8, 8, 1), grey values from 0 to 1.
        train_labels: (n,), labels of the training images.
        heldout_images: images that were not trained on.
        heldout_labels: labels of the held-out images.
        train_accuracy: accuracy on the training images.
        heldout_accuracy: accuracy on the held-out images.
    """

    model: Model
    train_images: Float[np.ndarray, "n 8 8 1"]
    train_labels: Int[np.ndarray, "n"]
    heldout_images: Float[np.ndarray, "k 8 8 1"]
    heldout_labels: Int[np.ndarray, "k"]
    train_accuracy: float
    heldout_accuracy: float


def digits(*, n_train: int = 1200, steps: int = 300, seed: int = 0, progress: Progress = True) -> Digits:
    """Train a two-layer convolutional Linen network on handwritten digits, in a few seconds on two cores.

    Args:
        n_train: number of training images, from the first; the rest of the 1,797 images are held out.
        steps: full-batch steps of Adam.
        seed: seed of the initial parameters.
        progress: True for a bar, False for none, a text stream for JSON lines.

    Raises:
        ValueError: ``n_train`` leaves no image for one of the two sets.
    """
    with needs("the digits task", "demo"):
        import flax  # noqa: F401
        import optax  # noqa: F401
        from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    if not 0 < n_train < len(labels):
        raise ValueError(f"n_train={n_train} is out of range; there are {len(labels)} images, some must be held out")
    images = (images / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    net = _network()
    params = _train(net, images[:n_train], labels[:n_train], steps, seed, progress)
    names = tuple(str(digit) for digit in range(10))
    model = from_linen(net, {"params": params}, label_names=names)
    right = np.asarray(net.apply({"params": params}, images)).argmax(-1) == labels
    return Digits(
        model,
        images[:n_train],
        labels[:n_train],
        images[n_train:],
        labels[n_train:],
        float(right[:n_train].mean()),
        float(right[n_train:].mean()),
    )


def _network() -> Any:
    import flax.linen as nn

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3))(x))
            x = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
            return nn.Dense(10)(x.mean((-3, -2)))

    return Network()


def _train(net: Any, images: np.ndarray, labels: np.ndarray, steps: int, seed: int, progress: Progress) -> PyTree:
    import optax

    params = net.init(jax.random.key(seed), images[:1])["params"]
    optimizer = optax.adam(1e-2)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, images, labels):
        def loss(p):
            logits = net.apply({"params": p}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    with progress_bar(progress, "training", steps, "step") as advance:
        for _ in range(steps):
            params, state, value = step(params, state, images, labels)
            advance(1, loss=float(value))
    return params
