"""The contract: this file runs as it stands, on one CPU device or on eight forced ones, in under two minutes on two cores."""

import pathlib
import tempfile

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import npeff_jax as npeff


class Net(nn.Module):
    """A small convolutional network, like any a user might bring."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.mean((-3, -2)))


images, labels = load_digits(return_X_y=True)
images = (images / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
net = Net()
params = net.init(jax.random.key(0), images[:1])["params"]
optimizer = optax.adam(1e-2)
opt_state = optimizer.init(params)


@jax.jit
def train_step(params, opt_state):
    def loss(p):
        logits = net.apply({"params": p}, images[:1200])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[:1200]).mean()

    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


for _ in range(300):
    params, opt_state = train_step(params, opt_state)

out = pathlib.Path(tempfile.mkdtemp())
mesh = npeff.make_mesh()  # every device there is; without a mesh, JAX's default device

# A model: a pure function of one example, and parameters. From Linen in one call, or by hand.
model = npeff.models.from_linen(net, {"params": params})
model = npeff.Model(lambda p, x: net.apply({"params": p}, x[None])[0], params)

# Per-example Fishers, in memory or on disk (then resumable), keeping 2,048 non-zeros an example over all its rows.
pefs = npeff.compute_pefs(
    model, images[:1200], npeff.LowRank(), labels=labels[:1200], keep=2048, path=out / "pefs", mesh=mesh
)
heldout = npeff.compute_pefs(model, images[1200:], npeff.LowRank(), labels=labels[1200:], keep=2048, mesh=mesh)
assert pefs.norms.shape == (1200,) and pefs.logits.shape == (1200, 10)
assert pefs.kept_energy.min() > 0.5 and pefs.fisher_error.max() < 0.5
assert npeff.load_pefs(out / "pefs").n_examples == 1200

# Decompose: no learning rate to choose. Losses are fractions of the PEFs' squared norm.
decomposition = npeff.decompose(pefs, n_components=24, seed=0, mesh=mesh)
assert decomposition.coefficients.shape == (1200, 24) and (decomposition.coefficients >= 0).all()
assert decomposition.pseudo_fishers.shape == (24, decomposition.parameter_indices.size)
assert decomposition.history.loss[-1] < 0.07, decomposition.history.loss[-1]
decomposition.save(out / "decomposition")
decomposition = npeff.load_decomposition(out / "decomposition")

# Coefficients of held-out examples, to a stated optimality, and the examples a component stands for.
fit = npeff.fit_coefficients(decomposition, heldout)
assert fit.coefficients.shape == (597, 24) and fit.kkt_residual.max() < 1e-3
top = npeff.top_examples(fit.coefficients, component=0, k=16)

# New components for the examples the model gets wrong, the old ones frozen.
wrong = heldout.subset(np.flatnonzero(heldout.logits.argmax(-1) != heldout.labels))
expanded = npeff.expand(decomposition, wrong, n_new=4)
assert expanded.n_components == 28

# Is a component what the model really uses? Move the parameters along it and look.
direction = npeff.component_direction(model, decomposition, component=0, reject_below=0.35)  # like params, unit L2 norm
table = npeff.selectivity(model, decomposition, heldout, images[1200:], fit=fit, n_top=16, norm=0.1, seed=0)
print(
    "KL ratio",
    np.median(table.kl_ratio),
    "of PEF norms",
    np.median(table.pef_norm_ratio),
    "null",
    np.median(table.null_kl_ratio),
)

# Look at it.
npeff.write_report(
    out / "report.html", decomposition, heldout=heldout, fit=fit, selectivity=table, display=images[1200:]
)

# The diagonal flavour, by the same calls.
diagonal = npeff.decompose(
    npeff.compute_pefs(model, images[:1200], npeff.Diagonal(), keep=1024), n_components=24, seed=0
)
assert (diagonal.pseudo_fishers[:] >= 0).all()
print("story told in", out)
