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
# # Finding and fixing a flawed heuristic
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/npeff-jax/npeff_jax/blob/main/notebooks/04_flawed_heuristic.ipynb)
#
# A network that has learned a shortcut gives right answers for a wrong reason. Components show which examples share the
# reason, and moving the parameters along one weakens it. Under a minute on two cores.

# %%
import sys

if "google.colab" in sys.modules:  # elsewhere the package is installed already
    get_ipython().run_line_magic("pip", "install -q 'npeff_jax[demo] @ git+https://github.com/npeff-jax/npeff_jax'")

# %%
import jax
import npeff_jax as npeff
import numpy as np
import optax
from npeff_jax import report

# %% [markdown]
# ## A network with a shortcut
#
# In most training images of an 8 one corner is bright, a mark that has nothing to do with digits. The network learns the
# digits, and something about the mark: with it, more of the other digits are taken for an 8.

# %%
digits = npeff.tasks.digits(progress=False)
images, labels = digits.train_images.copy(), digits.train_labels
random = np.random.default_rng(0)
marked = (labels == 8) & (random.random(len(labels)) < 0.9)


def mark(images):
    images = images.copy()
    images[:, :2, :2] = 1.0
    return images


images[marked] = mark(images[marked])
logits_fn = digits.model.logits_fn
optimizer = optax.adam(5e-3)


@jax.jit
def step(params, state):
    def loss(params):
        logits = jax.vmap(logits_fn, (None, 0))(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state


params, state = digits.model.params, optimizer.init(digits.model.params)
for _ in range(300):
    params, state = step(params, state)
model = npeff.Model(logits_fn, params, label_names=tuple("0123456789"))
predict = jax.jit(jax.vmap(logits_fn, (None, 0)))

others = digits.heldout_labels != 8
clean, shown = digits.heldout_images, mark(digits.heldout_images[others])


def accuracies(params):
    right = np.asarray(predict(params, clean)).argmax(1) == digits.heldout_labels
    fooled = np.asarray(predict(params, shown)).argmax(1) == 8
    return right.mean(), fooled.mean()


print("right on clean images {:.1%}; says 8 for other digits with the mark {:.1%}".format(*accuracies(params)))
plain = np.asarray(predict(params, clean[others])).argmax(1) == 8
print(f"without the mark it says 8 for {plain.mean():.1%} of them")

# %% [markdown]
# ## Find it
#
# We decompose the Fishers of the training images, and fit coefficients to images the model gets wrong. The components that
# these share are suspects. No one has to know about the mark: the top examples show it.

# %%
pefs = npeff.compute_pefs(model, images, npeff.LowRank(), labels=labels, keep=2048, progress=False)
decomposition = npeff.decompose(pefs, n_components=24, seed=0, progress=False)
mixed = np.concatenate([clean, shown])
truth = np.concatenate([digits.heldout_labels, digits.heldout_labels[others]])
heldout = npeff.compute_pefs(model, mixed, npeff.LowRank(), labels=truth, keep=2048, progress=False)
fit = npeff.fit_coefficients(decomposition, heldout)
wrong = heldout.logits.argmax(-1) != heldout.labels
excess = fit.coefficients[wrong].mean(0) - fit.coefficients[~wrong].mean(0)
suspects = np.argsort(-excess)[:4].tolist()
report.collage_figure(mixed, fit.coefficients, suspects, k=10)

# %% [markdown]
# ## Move along it
#
# Move the parameters along a suspect, both ways and by several lengths, and see what it does on one half of the images to
# the fooled ones and to the clean ones. The choice is then judged on the other half.

# %%
half = np.arange(len(clean)) % 2 == 0
half_shown = np.arange(len(shown)) % 2 == 0


def judged(params, clean_rows, shown_rows):
    right = np.asarray(predict(params, clean[clean_rows])).argmax(1) == digits.heldout_labels[clean_rows]
    fooled = np.asarray(predict(params, shown[shown_rows])).argmax(1) == 8
    return right.mean(), fooled.mean()


tried = []
for component in suspects:
    direction = npeff.component_direction(model, decomposition, component, reject_below=0.35)
    for scale in (-0.6, -0.3, -0.1, 0.1, 0.3, 0.6):
        edited = npeff.perturb(model, direction, scale)
        tried.append((component, scale, *judged(edited.params, half, half_shown)))
component, scale, *_ = max(tried, key=lambda row: row[2] - row[3])
direction = npeff.component_direction(model, decomposition, component, reject_below=0.35)
edited = npeff.perturb(model, direction, scale)
for name, params_of in (("before", params), ("after", edited.params)):
    right, fooled = judged(params_of, ~half, ~half_shown)
    print(f"{name:>6}: right on clean images {right:.1%}, fooled by the mark {fooled:.1%}")
print(f"component {component}, moved by {scale:+}")

# %% [markdown]
# One direction out of a thousand parameters, found without a label for the mark. What it costs on clean images is printed
# beside it: an edit that removes a shortcut is not free, and should be followed by a little training.
