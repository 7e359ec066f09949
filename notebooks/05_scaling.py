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
# # Scaling: plan, forms, devices
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/npeff-jax/npeff_jax/blob/main/notebooks/05_scaling.ipynb)
#
# How long will it take, will it fit, and what do I lose? The answers before the expensive run, the three forms in which a
# decomposition can be computed, and several devices. About a minute on two cores.

# %%
import sys

if "google.colab" in sys.modules:  # elsewhere the package is installed already
    get_ipython().run_line_magic("pip", "install -q 'npeff_jax[demo] @ git+https://github.com/npeff-jax/npeff_jax'")

# %%
import jax

jax.config.update("jax_num_cpu_devices", 8)  # pretend to have eight devices; with real ones leave this out

import npeff_jax as npeff
import numpy as np
from npeff_jax import report

# %% [markdown]
# ## What an accelerator gives, by arithmetic
#
# With a GPU the entries to keep are selected on it, in the program that computes the gradients. Below is the work of a
# BERT-base with 128 tokens and three classes (two gradient rows of 109 million parameters per example) over the data
# sheet's rates. A Colab T4 should do some 37 examples per second at full float32, ten at a time. Measured were 232 per
# second on an H200, in batches of 24: small products do not reach the data sheet's rate.

# %%
rows_gb, gflop = 2 * 109e6 * 4 / 1e9, 109
devices = {"T4": (8.1e3, 320, 15), "A100": (19.5e3, 1555, 40), "H100": (60e3, 3350, 80)}  # GFLOP/s, GB/s, GB
for name, (compute, bandwidth, memory) in devices.items():
    seconds = gflop / compute + 5 * rows_gb / bandwidth  # gradients, then five reads of the rows
    print(f"{name:>5}: {1 / seconds:4.0f} examples per second, {int(0.8 * memory / (1.3 * rows_gb))} at a time")

# %% [markdown]
# ## A model and more examples than we want to wait for
#
# A two-layer network on made-up data: what matters here are sizes, not what it computes.

# %%
random = np.random.default_rng(0)
n, features, hidden, classes = 2000, 64, 256, 5
params = {
    "layer_0": {"mlp": {"kernel": random.normal(size=(features, hidden)).astype(np.float32) / 8}},
    "head": {"kernel": random.normal(size=(hidden, classes)).astype(np.float32) / 4},
}
centres = random.normal(size=(12, features))
examples = (centres[random.integers(12, size=n)] + 0.5 * random.normal(size=(n, features))).astype(np.float32)


def logits_fn(params, x):
    return jax.nn.relu(x @ params["layer_0"]["mlp"]["kernel"]) @ params["head"]["kernel"]


model = npeff.Model(logits_fn, params)
print(f"{model.space.size:,} parameters, {n:,} examples")

# %% [markdown]
# ## Plan before you compute
#
# `plan` measures on a few examples what all of them will take, and what each choice of `keep` loses. *Energy kept* is the
# fraction of a Fisher's trace; the *Frobenius error* is the larger loss, since cross terms with dropped entries go too.

# %%
npeff.plan(model, examples, npeff.LowRank(), n_sampled=16)

# %% [markdown]
# Many predictions need only one or two rows. `min_trace` keeps as many as hold that share of the trace, and the kernel
# form, which is quadratic in the number of all rows, shrinks with its square.

# %%
for min_trace in (None, 0.99, 0.9):
    planned = npeff.plan(model, examples, npeff.LowRank(min_trace=min_trace), keep=[4096], n_sampled=16)
    print(f"min_trace={min_trace}: {planned.n_rows:g} rows an example, kernel {planned.kernel_bytes / 1e6:.0f} MB")

# %% [markdown]
# ## Over several devices
#
# Nothing takes every device silently: pass a mesh where you want them used. While PEFs are computed, examples are spread
# over it. The result does not depend on the number of devices.

# %%
mesh = npeff.make_mesh()
few = examples[:600]
one = npeff.compute_pefs(model, few, npeff.LowRank(min_trace=0.99), keep=4096, progress=False)
eight = npeff.compute_pefs(model, few, npeff.LowRank(min_trace=0.99), keep=4096, mesh=mesh, progress=False)
difference = np.abs(one.norms - eight.norms).max() / one.norms.max()
print(f"{mesh.size} devices; largest relative difference of the norms {difference:.1e}")

# %% [markdown]
# ## Three forms of the same decomposition
#
# The decomposition needs only three things of the stacked rows A: products with vectors, products of vectors with each
# other, and a way back to the parameters. Dense rows are fastest where they fit; sparse rows take memory by non-zeros; the
# kernel form works with the Gram matrix of the rows and forgets about the parameters until the end. All give the same.

# %%
import time

losses, histories = {}, {}
for name, rows in {"dense": npeff.DenseRows(), "sparse": npeff.SparseRows(), "kernel": npeff.KernelRows()}.items():
    start = time.perf_counter()
    found = npeff.decompose(
        one, 12, seed=0, rows=rows, mesh=mesh, stopping=npeff.Stopping(max_steps=60), progress=False
    )
    losses[name], histories[name] = found.history.loss[-1], found.history
    print(f"{name:>6}: loss {losses[name]:.6f}, {time.perf_counter() - start:.1f} s with compilation")
assert max(losses.values()) - min(losses.values()) < 1e-3

# %% [markdown]
# Three curves that lie on each other. (The late step down is an exchange: a component that brings little gives way to a
# new one where that lowers the loss.)

# %%
report.loss_figure(histories)

# %% [markdown]
# ## On disk, and interrupted
#
# With a `path` PEFs are written batch by batch, as zarr arrays that any zarr reader opens. Run again, what is there is
# not computed again: after an interruption the same call goes on.

# %%
import pathlib
import tempfile

path = pathlib.Path(tempfile.mkdtemp()) / "pefs"
npeff.compute_pefs(model, few, npeff.LowRank(min_trace=0.99), keep=4096, path=path, progress=False)
start = time.perf_counter()
again = npeff.compute_pefs(model, few, npeff.LowRank(min_trace=0.99), keep=4096, path=path, progress=False)
print(
    f"the second call took {time.perf_counter() - start:.2f} s; the non-zeros stay on disk: {type(again.values).__name__}"
)

# %% [markdown]
# With other settings it says what differs, and touches nothing.

# %%
try:
    npeff.compute_pefs(model, few, npeff.LowRank(), keep=4096, path=path, progress=False)
except ValueError as error:
    print(error)
