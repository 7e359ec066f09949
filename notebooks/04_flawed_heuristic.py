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
# reason, and moving the parameters along one weakens it. About a minute on two cores.

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
from npeff_jax.perturbation import component_directions

# %% [markdown]
# ## A network with a shortcut
#
# In most training images of an 8 one corner is bright, a mark that has nothing to do with digits. The network learns the
# digits, and something about the mark: with it, more of the other digits are taken for an 8, and more are predicted wrongly altogether.

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
# We decompose the Fishers of the training images, fit coefficients to images with and without the mark, and look at the
# components whose top images are predicted wrongly most often. No one has to know about the mark. But the pictures show
# it: in the rows of some suspects the upper left corner is bright throughout.

# %%
pefs = npeff.compute_pefs(model, images, npeff.LowRank(), labels=labels, keep=2048, progress=False)
decomposition = npeff.decompose(pefs, n_components=24, seed=0, progress=False)
mixed = np.concatenate([clean, shown])
truth = np.concatenate([digits.heldout_labels, digits.heldout_labels[others]])
heldout = npeff.compute_pefs(model, mixed, npeff.LowRank(), labels=truth, keep=2048, progress=False)
fit = npeff.fit_coefficients(decomposition, heldout)
wrong = heldout.logits.argmax(-1) != truth
share = npeff.evaluation.top_share(fit.coefficients, wrong)
suspects = np.argsort(-share, kind="stable")[:8].tolist()
report.collage_figure(mixed, fit.coefficients, suspects, k=10)

# %% [markdown]
# Since we planted the mark, we can check what the pictures suggest:

# %%
with_mark = np.arange(len(mixed)) >= len(clean)
marks = npeff.evaluation.top_share(fit.coefficients, with_mark)
print(f"of all images {wrong.mean():.0%} are predicted wrongly, {with_mark.mean():.0%} have the mark; of the top 16")
for component in suspects:
    print(f"of component {component:>2}: {share[component]:.0%} wrongly, {marks[component]:.0%} with the mark")

# %% [markdown]
# ## Move along it
#
# Move the parameters along each suspect, both ways, and count what is predicted right. One half of the images chooses the
# component and its sign; what is reported is the accuracy on the other half, with a confidence interval. (An image and its
# marked copy are in the same half.)

# %%
half = np.arange(len(clean)) % 2 == 0
choosing = np.concatenate([half, half[others]])
directions = component_directions(model, decomposition, suspects, reject_below=0.35)
repairs = npeff.evaluation.find_repairs(model, directions, mixed, truth, choosing=choosing, norm=0.1)
repairs

# %%
best = int(np.argmax(repairs.chosen_change))
after = repairs.after[best, 0 if repairs.sign[best] > 0 else 1]
print(f"component {suspects[best]}, moved by {0.1 * repairs.sign[best]:+}")
for name, rows in (("clean", ~with_mark & ~choosing), ("marked", with_mark & ~choosing)):
    print(f"{name:>6} images right: {repairs.before[rows].mean():.1%} before, {after[rows].mean():.1%} after")

# %% [markdown]
# One direction out of a thousand parameters, found without a label for the mark. What it costs on clean images is printed
# beside it: an edit that weakens a shortcut is not free, and should be followed by a little training.
