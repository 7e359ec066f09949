"""The language model of the paper's experiments, in small: a transformer that was trained to infer on sentence pairs.

The paper fine-tunes BERT-base on MNLI. Here a two-layer transformer learns from few pairs of sentences of three words
(``a poodle runs``, ``no animal rests``), so that, like there, it errs on a part of the pairs it has not seen. A
sentence is the set of scenes, a most specific noun with a most specific verb, in which it is true; sets decide the
label.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import npeff_jax as npeff

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


NOUNS = {
    "animal": ("dog", "cat", "bird", "poodle", "beagle", "terrier", "siamese", "tabby", "persian", "robin", "sparrow"),
    "dog": ("poodle", "beagle", "terrier"),
    "cat": ("siamese", "tabby", "persian"),
    "bird": ("robin", "sparrow"),
    "person": ("child", "athlete", "artist", "boy", "girl", "toddler", "runner", "swimmer", "painter", "dancer"),
    "child": ("boy", "girl", "toddler"),
    "athlete": ("runner", "swimmer"),
    "artist": ("painter", "dancer"),
    "vehicle": ("car", "boat", "plane", "sedan", "coupe", "taxi", "ferry", "canoe", "jet", "glider"),
    "car": ("sedan", "coupe", "taxi"),
    "boat": ("ferry", "canoe"),
    "plane": ("jet", "glider"),
}
VERBS = {"moves": ("runs", "turns"), "rests": ("stands", "waits")}
"""Each general word, and all the words under it."""

LABELS = ("contradiction", "entailment", "neutral")


def most_specific(tree):
    """Each word, and the most specific words that it is true of."""
    words = sorted({*tree, *(word for below in tree.values() for word in below)})
    return {word: frozenset(w for w in tree.get(word, (word,)) if w not in tree) for word in words}


THINGS, ACTS = most_specific(NOUNS), most_specific(VERBS)
SCENES = frozenset((t, a) for t in THINGS if t not in NOUNS for a in ACTS if a not in VERBS)
WORDS = ("a", "no", "?", *THINGS, *ACTS)


def meaning(sentence):
    """The scenes in which ``(a or no, noun, verb)`` is true."""
    affirmed = frozenset((t, a) for t in THINGS[sentence[1]] for a in ACTS[sentence[2]])
    return SCENES - affirmed if sentence[0] == "no" else affirmed


def label_of(premise, hypothesis):
    """The position in `LABELS`."""
    seen, claimed = meaning(premise), meaning(hypothesis)
    return 1 if seen <= claimed else 2 if seen & claimed else 0


def sentence_pairs(count, seed=SEED):
    """Distinct pairs with an even number of each label, as tokens (count, 7), labels and text."""
    rng = np.random.default_rng(seed)
    choices = (("a", "no"), tuple(THINGS), tuple(ACTS))
    each, found = -(-count // 3), {label: {} for label in range(3)}
    while min(len(pairs) for pairs in found.values()) < each:
        words = [choice[rng.integers(len(choice))] for choice in choices * 2]
        label = label_of(words[:3], words[3:])
        if len(found[label]) < each:
            found[label][(*words, "?")] = label
    pairs = [pair for label in range(3) for pair in found[label].items()]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))[:count]]
    tokens = np.array([[WORDS.index(word) for word in words] for words, _ in pairs], np.int32)
    return tokens, np.array([label for _, label in pairs]), [" ".join(words) for words, _ in pairs]


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
    net = Transformer(len(WORDS))
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

    model = npeff.Model(logits_fn, params, intermediates_fn=intermediates, label_names=LABELS)
    parts = np.split(np.arange(n_train + n_examples + n_heldout), [n_train, n_train + n_examples])
    return model, head, (tokens[parts[1]], labels[parts[1]]), (tokens[parts[2]], labels[parts[2]])
