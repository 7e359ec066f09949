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
# # Ask for a component: the mark in the corner
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/npeff-jax/npeff_jax/blob/main/notebooks/07_ask.ipynb)
#
# Notebook 04 looks for a shortcut without knowing it. Here we suspect one: we mark examples, get the component that
# follows the marks, test whether the network has it at all, and move along it. About a minute on two cores.

# %%
import sys

if "google.colab" in sys.modules:  # elsewhere the package is installed already
    get_ipython().run_line_magic("pip", "install -q 'npeff_jax[demo] @ git+https://github.com/npeff-jax/npeff_jax'")

# %%
import jax
import npeff_jax as npeff
import numpy as np
import optax
from npeff_jax.evaluation import repair, steer, tuning_evidence
from npeff_jax.perturbation import TrustRegion

# %% [markdown]
# ## A network with a shortcut
#
# In nearly all training images of an 8 one corner is bright.

# %%
digits = npeff.tasks.digits(progress=False)
random = np.random.default_rng(0)


def mark(images, rows):
    images = images.copy()
    images[rows, :2, :2] = 1.0
    return images


labels = digits.train_labels
images = mark(digits.train_images, (labels == 8) & (random.random(len(labels)) < 0.98))
logits_fn, optimizer = digits.model.logits_fn, optax.adam(5e-3)


@jax.jit
def step(params, state):
    def loss(params):
        logits = jax.vmap(logits_fn, (None, 0))(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state


params, state = digits.model.params, optimizer.init(digits.model.params)
for _ in range(1000):
    params, state = step(params, state)
model = npeff.Model(logits_fn, params, label_names=tuple("0123456789"))

# %% [markdown]
# ## Marks
#
# Half of the held-out images get the mark, whatever their digit. Some of them are decomposed, the others judge. What we
# ask for is a component of those where the mark decides: with it the network says 8, without it something else. Of half
# of the images nothing is told. Beside it we ask for what the network cannot have: a coin for each image.

# %%
has_mark = random.random(len(digits.heldout_labels)) < 0.5
shown = mark(digits.heldout_images, has_mark)
predict = jax.jit(jax.vmap(logits_fn, (None, 0)))
says, without = (np.asarray(predict(params, x)).argmax(1) for x in (shown, digits.heldout_images))
decides = (says == 8) & (without != 8)
print(f"the mark decides for {decides.sum()} of {has_mark.sum()} images that have it")
coin = random.random(len(shown)) < 0.5
pefs = npeff.compute_pefs(model, shown, labels=digits.heldout_labels, keep=2048, progress=False)
asked, held = np.arange(len(shown)) < 400, np.arange(len(shown)) >= 400

known = np.arange(400) % 2 == 0
concepts = {"corner": decides, "coin": coin}
tunings = [npeff.Tuning(name, np.where(known, truth[asked], np.nan)) for name, truth in concepts.items()]
stopping = npeff.Stopping(max_steps=60)
decomposition = npeff.decompose(pefs.subset(asked), 16, tunings=tunings, stopping=stopping, progress=False)
decomposition

# %% [markdown]
# ## Is it in the network?
#
# On images that were not decomposed, against permuted marks.

# %%
marks = {name: truth[held] for name, truth in concepts.items()}
evidence = tuning_evidence(decomposition, pefs.subset(asked), tunings, pefs.subset(held), marks, progress=False)
print(evidence)
evidence

# %% [markdown]
# ## Steer
#
# The probability of an 8 on marked images of other digits, as the parameters move along the component; and along other
# components, at the same KL.

# %%
directions = {"corner": npeff.component_direction(model, decomposition, decomposition.component_named("corner"))}
for component in range(2, 8):
    directions[f"component {component}"] = npeff.component_direction(model, decomposition, component)
others = held & has_mark & (digits.heldout_labels != 8)
steer(model, directions, shown[others], 8, nats=0.1)

# %% [markdown]
# ## Repair
#
# The loss gradient of wrong predictions chooses sign, size and combination of components; a budget of KL holds what is
# right. The accuracy is reported on images that did not choose the move.

# %%
within = TrustRegion(nats=0.05)
repair(model, decomposition, shown, digits.heldout_labels, choosing=0.5, within=within)
