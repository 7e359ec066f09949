"""A small transformer with a planted flaw, trained on biased inference: shared words mostly occur with entailment.

The correct rule holds for all pairs of the language, and the shortcut for almost all training pairs, so that gradient
descent learns both (McCoy et al., 2019, found the shortcut of lexical overlap in models trained on MNLI). On unbiased
pairs the model makes errors, on a known set of examples.
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
"""Language of 68 nouns and 12 verbs, with 2.7 million pairs, of which the rarest kind has 3,780."""

LABELS = tuple(label.value for label in Label)
"""Labels in the order of the model's classes."""

HEAD_WIDTH = 16
"""Width of an attention head, for every width of the model."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shortcut:
    """The trained model, its biased training set, and unbiased held-out pairs.

    Attributes:
        model: logits of contradiction, entailment and neutral for the seven tokens of one pair. Its intermediate value
            ``final`` is the input of the output layer.
        head: the output layer, ``(params, final)`` to logits.
        train: the biased training set.
        heldout: pairs that were not trained on, balanced over labels and polarities.
        misled: (n,), whether the shortcut is wrong for a held-out pair: a shared word, but no entailment.
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
    """Train a small transformer on biased pairs, in less than a minute on two cores.

    Args:
        n_train: number of training pairs; fewer if the bias leaves too few of some kind.
        n_heldout: number of held-out pairs.
        counterexamples: fraction of the pairs contradicting the shortcut that may be in the training set.
        width: width of the model, which has about 8 width² parameters per layer (20,131 for width 32 and two layers).
        layers: number of layers.
        steps: steps of Adam on batches of 128; 0 keeps the initial parameters.
        seed: seed of pairs and initial parameters.
        progress: True for a bar, False for none, a text stream for JSON lines.

    Raises:
        ValueError: ``counterexamples`` is not from 0 to 1, or ``width`` is not a multiple of 16.
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
    """Compute the labels of many pairs, as positions in `LABELS`.

    Args:
        language: the language of the pairs.
        pairs: (n, 6), for premise and hypothesis: whether it is negated, the index of its noun, the index of its verb.
    """
    within, covers, meets = np.ones((3, len(pairs)), bool)  # of the scenes: P ⊆ H, H ⊆ P, P ∩ H ≠ ∅
    for extensions, p, h in ((language.things, 1, 4), (language.acts, 2, 5)):
        below = np.array([[a <= b for b in extensions.values()] for a in extensions.values()])
        up, down = below[pairs[:, p], pairs[:, h]], below[pairs[:, h], pairs[:, p]]
        # sets of a hierarchy that meet are nested
        within, covers, meets = within & up, covers & down, meets & (up | down)
    p_not, h_not = pairs[:, 0] == 1, pairs[:, 3] == 1
    polarities = [~p_not & ~h_not, ~p_not & h_not, p_not & ~h_not, p_not & h_not]
    never = np.zeros(len(pairs), bool)
    entails = np.select(polarities, [within, ~meets, never, covers], never)
    contradicts = np.select(polarities, [~meets, within, covers, never], never)
    return np.select([contradicts, entails], [0, 1], default=2)


def shares_word(pairs: Int[np.ndarray, "n 6"]) -> Bool[np.ndarray, "n"]:
    """Return whether premise and hypothesis share the noun or the verb."""
    return (pairs[:, 1:3] == pairs[:, 4:6]).any(axis=1)


def vocabulary(language: Language) -> tuple[str, ...]:
    """Return all tokens, in the order of their ids."""
    return ("a", "no", "?", *language.nouns, *language.verbs)


def tokens_of(language: Language, pairs: Int[np.ndarray, "n 6"]) -> Int[np.ndarray, "n 7"]:
    """Return token ids of the pairs: two sentences of three tokens, and the token at which the output is read."""
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
    """Draw allowed pairs in random order, equally many per combination of polarities and label if there are enough."""
    kind = 6 * pairs[:, 0] + 3 * pairs[:, 3] + labels
    kinds = np.unique(kind)
    share = -(-count // len(kinds))
    chosen = [np.flatnonzero((kind == value) & allowed)[:share] for value in kinds]
    return rng.permutation(np.concatenate(chosen))[:count]


def _transformer(tokens: Int[np.ndarray, "1 T"], width: int, layers: int, seed: int) -> tuple[Any, Any, Any, PyTree]:
    """Return the functions of the model (logits, intermediate values, head) and initial parameters."""
    with needs("the shortcut task"):
        import flax.linen as nn
        import optax  # noqa: F401  needed for training

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
            # Label smoothing keeps most predictions near 0.9, like those of a fine-tuned BERT.
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
