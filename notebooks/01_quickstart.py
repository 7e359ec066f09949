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
# # Quickstart: what does a small network for digits do?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/npeff-jax/npeff_jax/blob/main/notebooks/01_quickstart.ipynb)
#
# We train a small convolutional network, ask for every image how its prediction reacts to the parameters, and decompose
# these reactions into components that many images share. Then we look at one, and test it. About a minute on two cores.

# %%
import sys

if "google.colab" in sys.modules:  # elsewhere the package is installed already
    get_ipython().run_line_magic("pip", "install -q 'npeff_jax[demo] @ git+https://github.com/npeff-jax/npeff_jax'")

# %%
import npeff_jax as npeff
import numpy as np
from npeff_jax import report

digits = npeff.tasks.digits()
print(f"{digits.heldout_accuracy:.0%} of {len(digits.heldout_labels)} held-out images are predicted right")

# %% [markdown]
# ## A model and its Fishers
#
# A `Model` is a pure function `(params, example) -> logits` of one example, and its parameters. Its per-example Fishers
# (PEFs) say how each prediction would change if the parameters moved a little. `keep` says how many entries of each to
# keep; what is lost is measured.

# %%
model = digits.model
pefs = npeff.compute_pefs(model, digits.train_images, npeff.LowRank(), labels=digits.train_labels, keep=2048)
heldout = npeff.compute_pefs(model, digits.heldout_images, npeff.LowRank(), labels=digits.heldout_labels, keep=2048)
pefs

# %%
report.fidelity_figure(pefs)

# %% [markdown]
# ## Components
#
# No learning rate has to be chosen. The loss is a fraction of the PEFs' squared norm.

# %%
decomposition = npeff.decompose(pefs, n_components=24, seed=0)
decomposition

# %% [markdown]
# Coefficients say how much of each component is in an example's Fisher: never negative, near 1 where it is nearly all of
# it. For images that were not decomposed they are fitted. A row below is a component, its top images first.

# %%
fit = npeff.fit_coefficients(decomposition, heldout)
report.collage_figure(digits.heldout_images, fit.coefficients, components=range(6), k=10)

# %% [markdown]
# Most components are about *two* digits: a Fisher says what would change a prediction, and that is mostly about the two
# classes the model hesitates between.

# %%
for component in range(6):
    top = npeff.top_examples(fit.coefficients, component=component, k=32)
    pairs = np.sort(np.argsort(-heldout.logits[top], axis=1)[:, :2], axis=1)
    (a, b), count = max(
        ((tuple(pair), np.all(pairs == pair, axis=1).sum()) for pair in pairs), key=lambda found: found[1]
    )
    print(f"component {component}: for {count} of its top 32 images the two likeliest digits are {a} and {b}")

# %% [markdown]
# ## Is it what the model uses?
#
# Move the parameters along a component, and see whose predictions change. The KL ratio compares a component's top images
# with others. Beside it: the same ratio under *other* components' perturbations (the null that counts), and the ratio of
# the PEFs' norms, since some images react more to anything.

# %%
table = npeff.selectivity(model, decomposition, heldout, digits.heldout_images, fit=fit, n_top=16, norm=0.1, seed=0)
table

# %%
report.selectivity_figure(table)

# %% [markdown]
# ## Where in the network does a component live?

# %%
report.energy_figure(decomposition, components=[0, 1, 2])

# %% [markdown]
# ## Everything at once
#
# One HTML file to keep or to send: open it in a browser (in Colab it is among the files on the left). Search and sort the
# components, open a card for each.

# %%
npeff.write_report(
    "report.html",
    decomposition,
    heldout=heldout,
    fit=fit,
    selectivity=table,
    display=digits.heldout_images,
    model=model,
    title="Digits: a small convolutional network",
)
