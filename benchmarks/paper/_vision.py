"""The vision model of the paper's experiments, in small: a convolutional network with a hundred classes.

The paper uses a ResNet-50 on ImageNet's thousand. Here every handwritten digit of scikit-learn is rendered in ten
styles, and a class is a digit in a style. The digits that are explained and held out were drawn by hands that the
network has not been trained on.
"""

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import npeff_jax as npeff
from npeff_jax.tasks import Dataset

SIDE, STYLES, CLASSES = 12, 10, 100
SEED = 0
MIN_PROBABILITY = 3e-3
"""Classes below it are ignored in PEFs, as the paper does on ImageNet."""


class Network(nn.Module):
    @nn.compact
    def features(self, x):
        """Global average pooling of the last convolution: (batch, 32)."""
        x = nn.relu(nn.Conv(12, (3, 3), name="conv1")(x))
        x = nn.relu(nn.Conv(24, (3, 3), strides=2, name="conv2")(x))
        y = nn.relu(nn.Conv(24, (3, 3), name="conv3")(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2, name="conv4")(x + y))
        return x.mean((-3, -2))

    @nn.compact
    def classify(self, features):
        return nn.Dense(CLASSES, name="head")(features)

    def __call__(self, x):
        return self.classify(self.features(x))


def render(digits, style):
    """(n, 12, 12) images of (n, 8, 8) digits in one of ten styles."""
    canvas = np.zeros((len(digits), SIDE, SIDE), np.float32)
    canvas[:, 2:10, 2:10] = digits
    if style < 4:
        return np.rot90(canvas, style, axes=(1, 2))
    lines = (np.arange(SIDE) % 3 == 0).astype(np.float32)
    frame = np.ones((SIDE, SIDE), np.float32)
    frame[1:-1, 1:-1] = 0
    return [
        canvas.transpose(0, 2, 1),
        1 - canvas,
        np.maximum(canvas, frame),
        np.maximum(canvas, 0.5 * lines[:, None]),
        np.maximum(canvas, 0.5 * lines[None, :]),
        np.maximum(canvas, 0.5 * np.outer(lines, lines) + 0.25),
    ][style - 4]


def split(n_train, n_examples, n_heldout):
    """Data sets to decompose and to judge by, and the images and classes to train on: of the first ``n_train`` digits
    in all styles. The others' hands are new to the network.
    """
    images, labels = load_digits(return_X_y=True)
    digits = (images / 16).astype(np.float32).reshape(-1, 8, 8)
    rendered = np.concatenate([render(digits, style)[..., None] for style in range(STYLES)])
    classes = np.concatenate([STYLES * labels + style for style in range(STYLES)]).astype(np.int32)
    hand = np.tile(np.arange(len(digits)), STYLES)
    trained, rest = np.flatnonzero(hand < n_train), np.flatnonzero(hand >= n_train)
    rest = np.random.default_rng(SEED).permutation(rest)[: n_examples + n_heldout]
    if len(rest) < n_examples + n_heldout:
        raise ValueError(f"{n_examples} and {n_heldout} images are more than the {len(rest)} not trained on")
    first, second = (Dataset(rendered[rows], classes[rows], rendered[rows]) for rows in np.split(rest, [n_examples]))
    return first, second, (rendered[trained], classes[trained])


def train(images, classes, steps):
    """Parameters after Adam with a cosine schedule over random minibatches."""
    net = Network()
    params = net.init(jax.random.key(SEED), images[:1])["params"]
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    state = optimizer.init(params)
    rng = np.random.default_rng(SEED)

    @jax.jit
    def step(params, state, images, classes):
        def loss(p):
            return optax.softmax_cross_entropy_with_integer_labels(net.apply({"params": p}, images), classes).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        rows = rng.integers(0, len(classes), 128)
        params, state = step(params, state, images[rows], classes[rows])
    return params


def model(params):
    """The model and its head."""
    net = Network()

    def logits_fn(params, x):
        return net.apply({"params": params}, x[None])[0]

    def intermediates(params, x):
        return {"final": net.apply({"params": params}, x[None], method="features")[0]}

    def head(params, features):
        return net.apply({"params": params}, features, method="classify")

    return npeff.Model(logits_fn, params, intermediates_fn=intermediates), head
