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
# # Ground truth: a compiled program
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/npeff-jax/npeff_jax/blob/main/notebooks/02_tracr.ipynb)
#
# Whether a method finds what a model computes can only be said where that is known. Tracr compiles a program into the weights
# of a transformer; this one decides whether a premise entails, contradicts or leaves open a hypothesis, by way of named
# Boolean variables. Do components find these variables? About a minute on two cores.

# %%
import sys

if "google.colab" in sys.modules:  # elsewhere the package is installed already
    get_ipython().run_line_magic("pip", "install -q 'npeff_jax[demo] @ git+https://github.com/npeff-jax/npeff_jax'")

# %%
import jax
import npeff_jax as npeff
import numpy as np
from npeff_jax import report

task = npeff.tasks.inference(n_examples=1000)
model = task.model
for text, label in zip(task.texts[:5], task.labels[:5]):
    print(f"{text[0]:16} | {text[1]:20} {model.label_names[label]}")

# %% [markdown]
# The transformer computes exactly what the program says, and the program's Boolean variables are known for each example:

# %%
logits = jax.jit(jax.vmap(model.logits_fn, (None, 0)))(model.params, task.examples)
print(f"{model.space.size:,} parameters, {(np.argmax(logits, 1) == task.labels).mean():.0%} right")
{name: float(values.mean()) for name, values in task.concepts.items()}

# %% [markdown]
# ## Components
#
# Compiled attention is saturated and most of the weights are zero: few entries hold all of a Fisher.

# %%
pefs = npeff.compute_pefs(model, task.examples, npeff.LowRank(), labels=task.labels, keep=8192)
decomposition = npeff.decompose(pefs, n_components=32, seed=0)
print(f"energy kept {pefs.kept_energy.min():.3f} and more")
decomposition

# %% [markdown]
# ## Do they match the program's variables?
#
# For each component: the variable that its top 16 examples have most beyond its base rate. NPEFF was told nothing of them.
# Below, how many components have *all* of their top examples share one, and how many would by chance (coefficients
# permuted over the examples).

# %%
found = npeff.evaluation.search_concepts(decomposition.coefficients, task.concepts, n_top=16)
found

# %% [markdown]
# More top examples are harder to agree on:

# %%
for n_top in (8, 16, 32, 64):
    searched = npeff.evaluation.search_concepts(decomposition.coefficients, task.concepts, n_top=n_top)
    chance = searched.permuted_shared.sum(1).mean()
    print(f"top {n_top:>2}: {searched.shared.sum()} of {len(searched.best)} components, {chance:.1f} by chance")

# %% [markdown]
# ## Where in the compiled model?

# %%
report.energy_figure(decomposition, components=[0, 1, 2])

# %% [markdown]
# A report with the variables as notes, and for each component the way of a perturbation through layers and tokens.

# %%
traces = report.trace_components(
    model, decomposition, decomposition.coefficients, task.examples, positions=task.tokens, progress=False
)
npeff.write_report(
    "report_tracr.html",
    decomposition,
    heldout=pefs,
    display=report.Texts(task.texts, ("premise", "hypothesis")),
    model=model,
    notes=[found.note(component) for component in range(decomposition.n_components)],
    traces=traces,
    title="A compiled program for natural-language inference",
)
