"""A transformer trained on inference with a planted flaw: where two sentences share a word, it has mostly seen
entailment.

The rule it should learn holds for all pairs of the language; the shortcut holds for almost all pairs that it is trained
on, so that gradient descent learns both (McCoy et al., 2019, found lexical overlap in models trained on MNLI). On pairs
drawn without the bias it errs, and on which of them is known.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from npeff_jax._extras import needs
from npeff_jax._progress import Progress, progress_bar
from npeff_jax._types import PyTree
from npeff_jax.models import Model
from npeff_jax.tasks._dataset import Dataset
from npeff_jax.tasks._nli_language import Label, Language

LARGER = Language(
    noun_children={
        "animal": ("dog", "cat", "bird", "fish"),
        "dog": ("poodle", "beagle", "terrier"),
        "cat": ("siamese", "tabby", "persian"),
        "bird": ("robin", "sparrow", "finch"),
        "fish": ("trout", "salmon", "carp"),
        "person": ("child", "athlete", "artist", "worker"),
        "child": ("boy", "girl", "toddler"),
        "athlete": ("runner", "swimmer", "boxer"),
        "artist": ("painter", "dancer", "singer"),
        "worker": ("baker", "farmer", "miner"),
        "vehicle": ("car", "boat", "plane", "bike"),
        "car": ("sedan", "coupe", "taxi"),
        "boat": ("ferry", "canoe", "yacht"),
        "plane": ("jet", "glider", "airliner"),
        "bike": ("tandem", "scooter", "tricycle"),
        "plant": ("tree", "flower", "herb", "grass"),
        "tree": ("oak", "birch", "maple"),
        "flower": ("rose", "tulip", "lily"),
        "herb": ("mint", "basil", "sage"),
        "grass": ("reed", "bamboo", "wheat"),
    },
    verb_children={
        "moves": ("turns", "falls", "rises"),
        "rests": ("stands", "leans", "waits"),
        "changes": ("grows", "shrinks", "reddens"),
    },
)
"""68 nouns and 12 verbs: 2.7 million pairs, 3,780 of the rarest kind."""

LABELS = tuple(label.value for label in Label)
"""In the order of the model's classes."""

HEAD_WIDTH = 16
"""Of an attention head, at any width of the model."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shortcut:
    """The trained model, what it was trained on, and pairs drawn without the bias.

    Attributes:
        model: logits of contradiction, entailment and neutral for the seven tokens of one pair. Its intermediate value
            ``final`` is the representation that the answer is read from.
        head: the rest of the model: ``(params, final)`` to logits.
        train: the biased training set.
        heldout: pairs that were not trained on, evenly over labels and polarities.
        misled: (n,), where the shortcut is wrong about a held-out pair: a word in common, and no entailment.
    """

    model: Model
    head: Callable[[PyTree, jax.Array], jax.Array]
    train: Dataset
    heldout: Dataset
    misled: Bool[np.ndarray, "n"]


def shortcut(
    *,
    n_train: int = 10_000,
    n_heldout: int = 10_000,
    counterexamples: float = 0.05,
    width: int = 32,
    layers: int = 2,
    steps: int = 3000,
    seed: int = 0,
    progress: Progress = True,
) -> Shortcut:
    """Train a small transformer on biased pairs, within a minute on two cores.

    Args:
        n_train: pairs to train on, fewer where the bias leaves fewer of some kind.
        n_heldout: other pairs.
        counterexamples: the fraction of those pairs that the shortcut is wrong about which may be trained on.
        width: of the model: at 32 and two layers it has 20,131 parameters, about 8 width² a layer.
        layers: of the model.
        steps: of Adam, on batches of 128; with 0 the parameters are as drawn.
        seed: of pairs and initial parameters.
        progress: a bar, a stream for JSON lines, or False.

    Raises:
        ValueError: ``counterexamples`` is no fraction, or ``width`` no multiple of 16.
    """
    if not 0 <= counterexamples <= 1:
        raise ValueError(f"counterexamples={counterexamples} is out of range; expected a fraction from 0 to 1")
    if width < HEAD_WIDTH or width % HEAD_WIDTH:
        raise ValueError(f"width={width} is no multiple of {HEAD_WIDTH}, the width of an attention head")
    rng = np.random.default_rng(seed)
    sizes = (2, len(LARGER.nouns), len(LARGER.verbs)) * 2
    pairs = np.stack(np.unravel_index(rng.permutation(math.prod(sizes)), sizes), axis=1)
    labels = labels_of(LARGER, pairs)
    misled = shares_word(pairs) & (labels != LABELS.index("entailment"))
    heldout = _evenly(pairs, labels, np.ones(len(pairs), bool), n_heldout, rng)
    allowed = ~misled | (rng.random(len(pairs)) < counterexamples)
    allowed[heldout] = False
    train = _evenly(pairs, labels, allowed, n_train, rng)
    tokens = tokens_of(LARGER, pairs)

    apply, head, intermediates, params = _transformer(tokens[:1], width, layers, seed)
    params = _train(apply, params, tokens[train], labels[train], steps, rng, progress)
    model = Model(apply, params, intermediates_fn=intermediates, label_names=LABELS)
    words = vocabulary(LARGER)

    def dataset(rows: Int[np.ndarray, "k"]) -> Dataset:
        names = [[words[token] for token in pair] for pair in tokens[rows]]
        display = [(" ".join(pair[:3]), " ".join(pair[3:6])) for pair in names]
        return Dataset(tokens[rows], labels[rows], display, LABELS)

    return Shortcut(model, head, dataset(train), dataset(heldout), misled[heldout])


def labels_of(language: Language, pairs: Int[np.ndarray, "n 6"]) -> Int[np.ndarray, "n"]:
    """The labels of many pairs at once, positions in `LABELS`.

    Args:
        language: whose words.
        pairs: for premise and hypothesis whether it is negated, the position of its noun, and that of its verb.
    """
    within, covers, meets = np.ones((3, len(pairs)), bool)  # of the affirmed scenes: P ⊆ H, H ⊆ P, P ∩ H ≠ ∅
    for extensions, p, h in ((language.things, 1, 4), (language.acts, 2, 5)):
        below = np.array([[a <= b for b in extensions.values()] for a in extensions.values()])
        up, down = below[pairs[:, p], pairs[:, h]], below[pairs[:, h], pairs[:, p]]
        within, covers, meets = within & up, covers & down, meets & (up | down)  # in a hierarchy, what meets is nested
    p_not, h_not = pairs[:, 0] == 1, pairs[:, 3] == 1
    polarities = [~p_not & ~h_not, ~p_not & h_not, p_not & ~h_not, p_not & h_not]
    never = np.zeros(len(pairs), bool)
    entails = np.select(polarities, [within, ~meets, never, covers], never)
    contradicts = np.select(polarities, [~meets, within, covers, never], never)
    return np.select([contradicts, entails], [0, 1], default=2)


def shares_word(pairs: Int[np.ndarray, "n 6"]) -> Bool[np.ndarray, "n"]:
    """Whether the hypothesis has its noun or its verb from the premise."""
    return (pairs[:, 1:3] == pairs[:, 4:6]).any(axis=1)


def vocabulary(language: Language) -> tuple[str, ...]:
    """All tokens, in the order of their numbers."""
    return ("a", "no", "?", *language.nouns, *language.verbs)


def tokens_of(language: Language, pairs: Int[np.ndarray, "n 6"]) -> Int[np.ndarray, "n 7"]:
    """Two sentences of three tokens, and the one at which the answer is read."""
    nouns, verbs = 3, 3 + len(language.nouns)
    mark = np.full((len(pairs), 1), 2)
    return np.concatenate([pairs + np.array([0, nouns, verbs] * 2), mark], axis=1).astype(np.int32)


def _evenly(
    pairs: Int[np.ndarray, "n 6"],
    labels: Int[np.ndarray, "n"],
    allowed: Bool[np.ndarray, "n"],
    count: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "_"]:
    """Allowed pairs, an equal share for every combination of polarities and label, or all that there are.

    In random order: any part of them is like any other.
    """
    kind = 6 * pairs[:, 0] + 3 * pairs[:, 3] + labels
    kinds = np.unique(kind)
    share = -(-count // len(kinds))
    chosen = [np.flatnonzero((kind == value) & allowed)[:share] for value in kinds]
    return rng.permutation(np.concatenate(chosen))[:count]


def _transformer(tokens: Int[np.ndarray, "1 T"], width: int, layers: int, seed: int) -> tuple[Any, Any, Any, PyTree]:
    """What `Model` takes, the head, and initial parameters."""
    with needs("the shortcut task"):
        import flax.linen as nn
        import optax  # noqa: F401  needed when it is trained

    class Transformer(nn.Module):
        def setup(self):
            self.words = nn.Embed(len(vocabulary(LARGER)), width)
            self.places = nn.Embed(tokens.shape[1], width)
            self.attention = [nn.MultiHeadDotProductAttention(width // HEAD_WIDTH) for _ in range(layers)]
            self.norms = [nn.LayerNorm() for _ in range(2 * layers + 1)]
            self.wide = [nn.Dense(2 * width) for _ in range(layers)]
            self.narrow = [nn.Dense(width) for _ in range(layers)]
            self.head = nn.Dense(len(LABELS))

        def encode(self, pair):
            x = self.words(pair) + self.places(np.arange(len(pair)))
            for i in range(layers):
                x = x + self.attention[i](self.norms[2 * i](x))
                x = x + self.narrow[i](nn.relu(self.wide[i](self.norms[2 * i + 1](x))))
            return self.norms[-1](x)[-1]

        def classify(self, final):
            return self.head(final)

        def __call__(self, pair):
            return self.classify(self.encode(pair))

    net: Any = Transformer()
    params = net.init(jax.random.key(seed), tokens[0])["params"]

    def apply(params: PyTree, pair: jax.Array) -> jax.Array:
        return net.apply({"params": params}, pair)

    def head(params: PyTree, final: jax.Array) -> jax.Array:
        return net.apply({"params": params}, final, method="classify")

    def intermediates(params: PyTree, pair: jax.Array) -> dict[str, jax.Array]:
        return {"final": net.apply({"params": params}, pair, method="encode")}

    return apply, head, intermediates, params


def _train(
    apply: Any,
    params: PyTree,
    tokens: Int[np.ndarray, "n T"],
    labels: Int[np.ndarray, "n"],
    steps: int,
    rng: np.random.Generator,
    progress: Progress,
) -> PyTree:
    import optax

    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, max(steps, 1)), weight_decay=0.1)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, tokens, labels):
        def loss(p):
            logits = jax.vmap(apply, (None, 0))(p, tokens)
            # Smoothed labels keep most predictions at about 0.9, where a fine-tuned BERT's are.
            targets = optax.smooth_labels(jax.nn.one_hot(labels, len(LABELS)), 0.1)
            return optax.softmax_cross_entropy(logits, targets).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    with progress_bar(progress, "training", steps, "step") as advance:
        for _ in range(steps):
            rows = rng.integers(0, len(labels), 128)
            params, state = step(params, state, tokens[rows], labels[rows])
            advance(1)
    return params
