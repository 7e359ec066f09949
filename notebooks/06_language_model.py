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
# # A language model: the next word, and whole answers
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/npeff-jax/npeff_jax/blob/main/notebooks/06_language_model.ipynb)
#
# We train a small language model on a language of our own, then explain what it says next, and the answers that it
# writes. The parameters explained are those of low-rank updates of its layers (as LoRA has them), not of the whole
# model. About two minutes on two cores.

# %%
import sys

if "google.colab" in sys.modules:  # elsewhere the package is installed already
    get_ipython().run_line_magic("pip", "install -q 'npeff_jax[demo] @ git+https://github.com/npeff-jax/npeff_jax'")

# %%
import jax
import jax.numpy as jnp
import npeff_jax as npeff
import numpy as np
import optax
from npeff_jax.models import Generation, LanguageModel, generate

# %% [markdown]
# ## A language, and a model of it
#
# A sentence says who, what they do and where. Animals bark or purr; people read or cook; what is read or cooked, and
# where, depends on that.

# %%
rules = {
    "dog": ["barks", "sleeps"],
    "cat": ["purrs", "sleeps"],
    "boy": ["reads", "cooks"],
    "girl": ["reads", "cooks"],
    "barks": ["outside"],
    "purrs": ["inside"],
    "sleeps": ["inside", "outside"],
    "reads": ["books", "letters"],
    "cooks": ["soup", "rice"],
    "books": ["inside"],
    "letters": ["outside"],
    "soup": ["inside"],
    "rice": ["outside"],
}
words = [".", "the", *rules, "outside", "inside"]
number = {word: i for i, word in enumerate(words)}
rng = np.random.default_rng(0)


def sentence():
    said = ["the", str(rng.choice(["dog", "cat", "boy", "girl"]))]
    while said[-1] in rules:
        said.append(str(rng.choice(rules[said[-1]])))
    return [*said, "."]


length, width = 8, 32
texts = [sentence() for _ in range(2000)]
ids = np.array([[number[w] for w in (text + ["."] * length)[:length]] for text in texts], np.int32)


def layer(params, name, x):
    """A linear layer, and its low-rank update: U starts at zero, so the update does nothing yet."""
    return x @ params[name] + x @ params["lora"][f"{name}_down"] @ params["lora"][f"{name}_up"]


def after(params, tokens, shown, places):
    """Logits of the next word after each of ``places``: one block of attention and one of two dense layers."""
    x = params["words"][tokens] + params["places"][: len(tokens)]
    scores = layer(params, "query", x) @ layer(params, "key", x).T / width**0.5
    visible = jnp.tri(len(tokens), dtype=bool) & (shown != 0)[None]
    x = x + jax.nn.softmax(jnp.where(visible, scores, -1e9)) @ layer(params, "value", x)
    x = x + layer(params, "out", jax.nn.gelu(layer(params, "hidden", x)))
    return x[places] @ params["words"].T


layers = ("query", "key", "value", "hidden", "out")
keys = iter(jax.random.split(jax.random.key(0), 20))
params = {name: jax.random.normal(next(keys), (width, width)) / width**0.5 for name in layers}
params |= {"words": 0.3 * jax.random.normal(next(keys), (len(words), width))}
params |= {"places": 0.3 * jax.random.normal(next(keys), (32, width))}
params["lora"] = {f"{n}_down": jax.random.normal(next(keys), (width, 2)) / width**0.5 for n in layers}
params["lora"] |= {f"{n}_up": jnp.zeros((2, width)) for n in layers}


# %%
def loss(params, batch):
    def one(text):
        log_p = jax.nn.log_softmax(after(params, text, jnp.ones_like(text), jnp.arange(length - 1)))
        return -jnp.mean(jnp.take_along_axis(log_p, text[1:, None], 1))

    return jnp.mean(jax.vmap(one)(batch))


@jax.jit
def step(params, state, batch):
    value, gradient = jax.value_and_grad(loss)(params, batch)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value


optimizer = optax.adam(3e-3)
state = optimizer.init(params)
for _ in range(600):
    params, state, value = step(params, state, ids[rng.integers(len(ids), size=64)])
print(f"loss {value:.3f} nats per word")

# %% [markdown]
# ## What it says next
#
# A `LanguageModel` is that function with its parameters; here the mask leaves the low-rank updates. Of a checkpoint,
# `npeff.models.language_model("folder")` makes one, and of a LoRA folder one that explains the LoRA. An example is a
# text and a position; every position is an example of its own.

# %%
language = LanguageModel(after, params, mask="lora/*", stop=(number["."],), max_length=32)
model = language.next_token()
chosen = [(i, t) for i in range(60) for t in range(1, length - 1) if texts[i][t - 1 : t] != ["."] and t < len(texts[i])]
places = np.array([t - 1 for _, t in chosen], np.int32)
examples = {"input_ids": ids[[i for i, _ in chosen]], "position": places}
shown = [" ".join([*texts[i][:t], f"⟦{texts[i][t]}⟧", *texts[i][t + 1 :]]) for i, t in chosen]
pefs = npeff.compute_pefs(model, examples, npeff.LowRank(), keep=512)
found = npeff.decompose(pefs, n_components=8, seed=0)
for component in range(8):
    top = npeff.top_examples(found.coefficients, component, 3)
    print(component, *[shown[i] for i in top], sep="\n   ")

# %% [markdown]
# With a real vocabulary (32,000 to 256,000 words) an exact Fisher would take as many backward passes as there are words;
# where no representation is given, `compute_pefs` then takes the largest rows only, at the cost of some 72 passes.
#
# ## The answers that it writes
#
# Now an example is a beginning, and the distribution is over everything that may follow. Its Fisher is the mean, over
# answers drawn from the model, of the outer product of the score of the whole answer. The answers become part of the
# examples, so that whoever looks at a component sees what it is about.

# %%
starts = [["the", who] for who in ("dog", "cat", "boy", "girl") for _ in range(8)]
prompts = {"input_ids": np.array([[number[w] for w in start] for start in starts], np.int32)}
answered = generate(language, prompts, Generation(n_answers=16, max_tokens=5))


def tokens(i, s):
    return answered["answer_ids"][i, s, : answered["answer_length"][i, s]]


said = [" / ".join(" ".join(words[w] for w in tokens(i, s)) for s in range(3)) for i in range(len(starts))]
print(said[0], said[16], sep="\n")

# %%
answers = language.generated()
pefs = npeff.compute_pefs(answers, answered, npeff.LowRank(), keep=2048)
found = npeff.decompose(pefs, n_components=4, seed=0)
for component in range(4):
    top = npeff.top_examples(found.coefficients, component, 2)
    print(component, *[f"{' '.join(starts[i])}: {said[i]}" for i in top], sep="\n   ")

# %% [markdown]
# Do these components belong to their own prompts? `selectivity` moves the parameters along each and compares the
# divergences between the distributions over *answers*, estimated from the same draws, with a standard error.

# %%
table = npeff.selectivity(answers, found, pefs, answered, fit=found, n_top=6, norm=npeff.KLBudget(0.02))
print(table)
