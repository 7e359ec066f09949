# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A Hugging Face BERT
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/npeff-jax/npeff_jax/blob/main/notebooks/03_bert.ipynb)
#
# A checkpoint of BERT, RoBERTa, DistilBERT, ViT, ResNet or GPT-2 in the Hugging Face format becomes a model in one call. This
# notebook writes a tiny one, trains it on a small task, and looks at its components as text. A minute or two on two cores.

# %%
import sys

if "google.colab" in sys.modules:  # elsewhere the package is installed already
    get_ipython().run_line_magic(
        "pip", "install -q 'npeff_jax[huggingface,report] @ git+https://github.com/npeff-jax/npeff_jax'"
    )

# %%
import dataclasses
import itertools
import json
import pathlib
import tempfile

import jax
import npeff_jax as npeff
import numpy as np
import optax
from npeff_jax import report
from safetensors.numpy import save_file

# %% [markdown]
# ## A checkpoint
#
# Any directory that `save_pretrained` wrote will do, such as one downloaded from the hub. To need no network this notebook
# writes its own: a BERT of two layers with random weights, in the format of such directories.

# %%
NAMES = ("entailment", "neutral", "contradiction")
KIND = {"dog": "animal", "cat": "animal", "man": "person", "woman": "person"}
ACT = {"runs": "moves", "walks": "moves", "sleeps": "rests", "sits": "rests"}
DETERMINERS = ("the", "a", "this", "some", "every")
NOUNS, VERBS = (*KIND, "animal", "person"), (*ACT, "moves", "rests")
WORDS = ("[PAD]", "[CLS]", "[SEP]", *DETERMINERS, *NOUNS, *VERBS, "not")
width, layers, inner = 32, 2, 64
random = np.random.default_rng(0)


def linear(name, rows, columns):
    return {f"{name}.weight": random.normal(size=(rows, columns)) / np.sqrt(columns), f"{name}.bias": np.zeros(rows)}


def norm(name):
    return {f"{name}.weight": np.ones(width), f"{name}.bias": np.zeros(width)}


weights = {
    "bert.embeddings.word_embeddings.weight": random.normal(size=(len(WORDS), width)),
    "bert.embeddings.position_embeddings.weight": random.normal(size=(16, width)) * 0.3,
    "bert.embeddings.token_type_embeddings.weight": random.normal(size=(2, width)) * 0.3,
    **norm("bert.embeddings.LayerNorm"),
    **linear("bert.pooler.dense", width, width),
    **linear("classifier", len(NAMES), width),
}
for i in range(layers):
    layer = f"bert.encoder.layer.{i}"
    for part in ("self.query", "self.key", "self.value", "output.dense"):
        weights |= linear(f"{layer}.attention.{part}", width, width)
    weights |= norm(f"{layer}.attention.output.LayerNorm") | norm(f"{layer}.output.LayerNorm")
    weights |= linear(f"{layer}.intermediate.dense", inner, width) | linear(f"{layer}.output.dense", width, inner)

directory = pathlib.Path(tempfile.mkdtemp()) / "tiny-bert"
directory.mkdir()
config = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": width,
    "num_hidden_layers": layers,
    "num_attention_heads": 4,
    "intermediate_size": inner,
    "max_position_embeddings": 16,
    "id2label": dict(enumerate(NAMES)),
}
(directory / "config.json").write_text(json.dumps(config))
save_file({name: np.ascontiguousarray(w, np.float32) for name, w in weights.items()}, directory / "model.safetensors")

model = npeff.models.from_huggingface(directory)
print(f"{model.space.size:,} parameters, classes {model.label_names}")

# %% [markdown]
# ## A small task of natural-language inference
#
# A premise and a hypothesis over a few words. A dog is an animal, whoever runs moves; what is not said to be so is neutral,
# and "not" turns what would follow into a contradiction.


# %%
def label_of(noun, verb, noun2, verb2, negated):
    if noun2 not in (noun, KIND[noun]) or verb2 not in (verb, ACT[verb]):
        return 1
    return 2 if negated else 0


every = list(itertools.product(KIND, ACT, NOUNS, VERBS, (False, True), DETERMINERS, DETERMINERS))
labels = np.array([label_of(*case[:5]) for case in every])
chosen = np.concatenate([random.choice(np.flatnonzero(labels == c), 600, replace=False) for c in range(3)])
chosen = random.permutation(chosen)
cases, labels = [every[i] for i in chosen], labels[chosen]
texts = [
    (f"{a} {noun} {verb}", f"{b} {noun2} {'not ' if negated else ''}{verb2}")
    for noun, verb, noun2, verb2, negated, a, b in cases
]
tokens = [["[CLS]", *p.split(), "[SEP]", *h.split(), "[SEP]"] for p, h in texts]
length = max(map(len, tokens))
index = {word: i for i, word in enumerate(WORDS)}
examples = {
    "input_ids": np.array([[index[w] for w in t] + [0] * (length - len(t)) for t in tokens], np.int32),
    "attention_mask": np.array([[1] * len(t) + [0] * (length - len(t)) for t in tokens], np.int32),
    "token_type_ids": np.array([[0] * 5 + [1] * (len(t) - 5) + [0] * (length - len(t)) for t in tokens], np.int32),
}
texts[:3], [NAMES[c] for c in labels[:3]]

# %%
train = jax.tree.map(lambda leaf: leaf[:1000], examples)
optimizer = optax.adam(3e-3)


@jax.jit
def step(params, state):
    def loss(params):
        logits = jax.vmap(model.logits_fn, (None, 0))(params, train)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[:1000]).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value


params, state = model.params, optimizer.init(model.params)
for _ in range(150):
    params, state, value = step(params, state)

model = dataclasses.replace(model, params=params)
right = np.asarray(jax.vmap(model.logits_fn, (None, 0))(params, examples)).argmax(1) == labels
print(
    f"loss {value:.3f}; right: {right[:1000].mean():.1%} of training examples, {right[1000:].mean():.1%} of the others"
)

# %% [markdown]
# ## Components
#
# Everything from here on is the same for any checkpoint.

# %%
held = jax.tree.map(lambda leaf: leaf[1000:], examples)
pefs = npeff.compute_pefs(model, train, npeff.LowRank(), labels=labels[:1000], keep=8192)
heldout = npeff.compute_pefs(model, held, npeff.LowRank(), labels=labels[1000:], keep=8192)
decomposition = npeff.decompose(pefs, n_components=16, seed=0)
decomposition

# %%
fit = npeff.fit_coefficients(decomposition, heldout)
table = npeff.selectivity(model, decomposition, heldout, held, fit=fit, n_top=24, norm=0.1, seed=0)
table

# %% [markdown]
# ## What do the top examples share?
#
# Here we know what an example can have in common with another. For each component: the property that its top examples have
# far more often than all. With a real data set one reads them instead; that is what the report is for.

# %%
properties = {
    "the hypothesis is negated": np.array([case[4] for case in cases]),
    "the noun is the same": np.array([case[0] == case[2] for case in cases]),
    "the noun is generalised": np.array([KIND[case[0]] == case[2] for case in cases]),
    "the verb is the same": np.array([case[1] == case[3] for case in cases]),
    "the verb is generalised": np.array([ACT[case[1]] == case[3] for case in cases]),
    "another noun": np.array([case[2] not in (case[0], KIND[case[0]]) for case in cases]),
    "another verb": np.array([case[3] not in (case[1], ACT[case[1]]) for case in cases]),
}
properties |= {f"the noun is {noun}": np.array([case[0] == noun for case in cases]) for noun in KIND}
properties |= {f"the verb is {verb}": np.array([case[1] == verb for case in cases]) for verb in ACT}
notes = []
for component in range(decomposition.n_components):
    top = npeff.top_examples(fit.coefficients, component=component, k=24)
    scores = {name: (has[1000:][top].mean(), has[1000:].mean()) for name, has in properties.items()}
    name, (own, base) = max(scores.items(), key=lambda entry: entry[1][0] - entry[1][1])
    notes.append(f"{name}: {own:.0%} of the top examples, {base:.0%} of all")
    print(component, notes[-1])

# %% [markdown]
# ## Where it enters, and how it reaches the output
#
# To first order: where along layers and tokens a small move of the parameters along a component changes the values inside
# the model, and what each layer's parameters do to the logits.

# %%
traces = report.trace_components(model, decomposition, fit.coefficients, held, positions=tokens[1000:], progress=False)
report.energy_figure(decomposition, components=[0, 1, 2])

# %%
npeff.write_report(
    "report_bert.html",
    decomposition,
    heldout=heldout,
    fit=fit,
    selectivity=table,
    display=report.Texts(texts[1000:], ("premise", "hypothesis")),
    model=model,
    notes=notes,
    traces=traces,
    title="A tiny BERT on made-up inference",
)
