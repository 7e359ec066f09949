"""Section 3.4: how do clusters of activations, and of gradients, compare with components?

Paper: 128 k-means clusters of final activations against LRM components of the inference model, mean maximum cosine
0.20 and 0.19 the other way; TCAV relates every cluster and every component to the prediction of at least one class.
TCAV is also asked about sets of random examples: at the 5% level it should relate 5% of those to a class.
"""

import numpy as np
from _harness import Row, Script, figure
from _settings import language

import npeff_jax as npeff
from npeff_jax.evaluation import activations, cluster, gradient_features, logit_gradients, tcav


def main():
    script = Script("Baselines: k-means on activations, gradient clustering, TCAV")
    setting = language(script.cache, script.fast)
    n_clusters = 8 if script.fast else 128
    fit = setting.fit()
    script.log(f"components: loss {fit.loss:.4f}")
    values = activations(setting.model, setting.heldout.examples, "final")
    clusters = cluster(values, n_clusters, seed=0)
    gradients = cluster(gradient_features(setting.model, setting.heldout.examples, seed=0), n_clusters, seed=0)
    script.log("clusters found")

    rows, details = [], setting.describe() | {"n_clusters": n_clusters}
    shuffled = np.random.default_rng(0).permutation(len(values))
    for name, found, paper in (("activation", clusters, ("0.20", "0.19")), ("gradient", gradients, ("–", "–"))):
        ours = npeff.compare_runs(found.membership, fit)
        chance = npeff.compare_runs(found.membership[shuffled], fit)
        pairs = (
            (ours.forward, chance.forward, "against components"),
            (ours.backward, chance.backward, "components against"),
        )
        for (real, permuted, direction), number in zip(pairs, paper, strict=True):
            note = f"permuted {permuted.mean():.2f}"
            rows.append(Row(f"{name} clusters, {direction}, mean maximum cosine", number, f"{real.mean():.2f}", note))
        details[name] = {"forward": ours.forward, "backward": ours.backward}

    predictions = setting.predictions(setting.heldout)
    jacobians = logit_gradients(setting.model, values, setting.head)
    top = lambda coefficients, k: npeff.top_examples(coefficients, k, setting.n_top)  # noqa: E731
    sizes = np.bincount(clusters.assignment, minlength=n_clusters)
    rng = np.random.default_rng(0)
    concepts = {
        "components": ([top(fit.coefficients, j) for j in range(setting.n_components)], "100%"),
        "activation clusters": (
            [top(clusters.coefficients, k)[: sizes[k]] for k in range(n_clusters) if sizes[k] > 1],
            "100%",
        ),
        "random sets of examples": ([rng.choice(len(values), setting.n_top, replace=False) for _ in range(200)], "–"),
    }
    for name, (sets, paper) in concepts.items():
        found = tcav(values, jacobians, predictions, sets, seed=0)
        details[f"TCAV {name}"] = {"p": found.p_values.min(axis=1)}
        note = f"{len(sets)} sets, 5% level over all classes"
        rows.append(Row(f"TCAV: {name} related to a class", paper, f"{found.significant().mean():.0%}", note))
        script.log(repr(found))

    drawn, axes = figure(2)
    for axis, name in zip(axes, ("activation", "gradient"), strict=True):
        axis.hist([details[name]["forward"], details[name]["backward"]], 20, label=["clusters", "components"])
        axis.set(title=f"{name} clusters and components", xlabel="maximum cosine", ylabel="count")
        axis.legend()
    script.finish(rows, details, drawn)


if __name__ == "__main__":
    main()
