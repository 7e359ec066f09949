"""The language model of the paper's experiments, in small: a transformer that was trained to infer on sentence pairs.

The paper fine-tunes BERT-base on MNLI. Here a two-layer transformer learns the simplified inference task of
`npeff_jax.tasks` from few pairs, so that, like there, it errs on a part of the pairs it has not seen.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import npeff_jax as npeff
from npeff_jax.tasks import FULL, Label, Pair

WIDTH, LAYERS, HEADS, LENGTH = 32, 2, 2, 7
SEED = 0
"""Of the pairs, the split and the initial parameters: fixed before the first decomposition."""


class Transformer(nn.Module):
    vocabulary: int

    def setup(self):
        self.words = nn.Embed(self.vocabulary, WIDTH)
        self.places = nn.Embed(LENGTH, WIDTH)
        self.attention = [nn.MultiHeadDotProductAttention(HEADS) for _ in range(LAYERS)]
        self.norms = [nn.LayerNorm() for _ in range(2 * LAYERS + 1)]
        self.wide = [nn.Dense(2 * WIDTH) for _ in range(LAYERS)]
        self.narrow = [nn.Dense(WIDTH) for _ in range(LAYERS)]
        self.head = nn.Dense(3)

    def encode(self, tokens):
        """The final representation of the last token, where the answer is read: (batch, width)."""
        x = self.words(tokens) + self.places(jnp.arange(LENGTH))
        for layer in range(LAYERS):
            x = x + self.attention[layer](self.norms[2 * layer](x))
            x = x + self.narrow[layer](nn.relu(self.wide[layer](self.norms[2 * layer + 1](x))))
        return self.norms[-1](x)[:, -1]

    def classify(self, features):
        return self.head(features)

    def __call__(self, tokens):
        return self.classify(self.encode(tokens))


def sentence_pairs(count, seed=SEED):
    """Distinct pairs with an even number of each label, as tokens, labels and text."""
    rng = np.random.default_rng(seed)
    nouns, verbs, classes = FULL.nouns, FULL.verbs, list(Label)
    index = {word: i for i, word in enumerate(sorted(FULL.vocabulary))}
    each, found, seen = -(-count // len(classes)), {label: [] for label in classes}, set()
    while min(len(pairs) for pairs in found.values()) < each:
        negated, noun, verb = (
            rng.integers(2, size=2),
            rng.integers(len(nouns), size=2),
            rng.integers(len(verbs), size=2),
        )
        (n1, n2), (w1, w2), (v1, v2) = negated, noun, verb
        pair = Pair(bool(n1), nouns[w1], verbs[v1], bool(n2), nouns[w2], verbs[v2])
        if pair not in seen and len(found[label := FULL.label(pair)]) < each:
            seen.add(pair)
            found[label].append(pair)
    pairs = [(pair, classes.index(label)) for label in classes for pair in found[label]]
    order = rng.permutation(len(pairs))[:count]
    tokens = np.array([[index[token] for token in pairs[i][0].tokens] for i in order], np.int32)
    return tokens, np.array([pairs[i][1] for i in order]), [str(pairs[i][0]) for i in order]


def train(apply, params, inputs, labels, steps, rate, smoothing=0.0, seed=SEED, batch=128):
    """Adam with a cosine schedule over random minibatches."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    state = optimizer.init(params)
    rng = np.random.default_rng(seed)

    @jax.jit
    def step(params, state, inputs, labels):
        def loss(p):
            logits = apply(p, inputs)
            targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
            return optax.softmax_cross_entropy(logits, targets).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        rows = rng.integers(0, len(labels), batch)
        params, state = step(params, state, inputs[rows], labels[rows])
    return params


def build(n_train, n_examples, n_heldout, steps):
    """The trained model, and tokens and labels of examples to explain and of held-out ones; none were trained on."""
    tokens, labels, _ = sentence_pairs(n_train + n_examples + n_heldout)
    net = Transformer(len(FULL.vocabulary))
    params = net.init(jax.random.key(SEED), tokens[:1])["params"]

    def apply(params, x):
        return net.apply({"params": params}, x)

    # Smoothed labels keep predictions at about 0.9, where a fine-tuned BERT's are; else all of them saturate.
    params = train(apply, params, tokens[:n_train], labels[:n_train], steps, 3e-3, 0.1)

    def logits_fn(params, x):
        return net.apply({"params": params}, x[None])[0]

    def intermediates(params, x):
        return {"final": net.apply({"params": params}, x[None], method="encode")[0]}

    def head(params, features):
        return net.apply({"params": params}, features, method="classify")

    names = tuple(label.value for label in Label)
    model = npeff.Model(logits_fn, params, intermediates_fn=intermediates, label_names=names)
    parts = np.split(np.arange(n_train + n_examples + n_heldout), [n_train, n_train + n_examples])
    return model, head, (tokens[parts[1]], labels[parts[1]]), (tokens[parts[2]], labels[parts[2]])
