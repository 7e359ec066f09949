"""One short run from examples to a causal check, in its stages, for `test_switches`: prints what each gave as JSON."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

import npeff_jax as npeff

QUIET = {"progress": False}


def main() -> None:
    """Run every stage; what one needs of another is made without the switch, so that a stage fails by itself."""
    switches = json.loads(sys.argv[1])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 3)).astype(np.float32)
    weights = {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "b": jnp.zeros(4, jnp.float32)}
    model = npeff.Model(lambda p, e: jnp.tanh(e @ p["w"]) + p["b"], weights)
    pefs = npeff.compute_pefs(model, x, **QUIET)
    found = npeff.decompose(pefs, 3, seed=0, **QUIET)
    stages = {
        "compute": lambda: npeff.compute_pefs(model, x, **QUIET).norms,
        "classes": lambda: (
            npeff.compute_pefs(model, x, npeff.LowRank(rows="classes", min_probability=0.05), keep=20, **QUIET).norms
        ),
        "sketch": lambda: npeff.compute_pefs(model, x, npeff.LowRank(sketch=2), **QUIET).norms,
        "diagonal": lambda: npeff.compute_pefs(model, x, npeff.Diagonal(), **QUIET).norms,
        "sampled": lambda: npeff.compute_pefs(model, x, npeff.Sampled(4), **QUIET).norms,
        "rows": lambda: npeff.pef_rows(model.logits_fn, weights, x[0]).gram,
        "decompose": lambda: npeff.decompose(pefs, 3, seed=0, **QUIET).history.loss[-1:],
        "fit": lambda: npeff.fit_coefficients(found, pefs).coefficients,
        "expand": lambda: npeff.expand(found, pefs, 1, **QUIET).coefficients.shape,
        "selectivity": lambda: npeff.selectivity(model, found, pefs, x, fit=found, n_top=5, **QUIET).kl_ratios,
    }
    for name, value in switches.items():
        jax.config.update(name, value)
    said = {}
    for name, stage in stages.items():
        try:
            said[name] = np.asarray(stage(), np.float64).ravel().tolist()
        except Exception as error:
            said[name] = f"{type(error).__name__}: {str(error)[:300]}"
    print(json.dumps(said))


if __name__ == "__main__":
    main()
