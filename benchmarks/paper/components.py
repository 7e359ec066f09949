"""Section 3.3, number of components: do larger runs split the components of smaller ones?

Paper: with 32, 128 and 512 components every component of a smaller run has at least one split in a larger one. Chance
is shown beside it (the larger run's coefficients permuted over examples), because with four or sixteen times as many
components most have a split by accident.
"""

import itertools

import numpy as np
from _harness import Row, Script, figure
from _settings import language

import npeff_jax as npeff


def main():
    script = Script("Number of components: components of the smaller run with a split in the larger")
    setting = language(script.cache, script.fast)
    counts = (4, 12, 24) if script.fast else (32, 128, 512)
    runs = []
    for count in counts:
        runs.append(setting.decomposition(r=count))
        script.log(f"{count} components: loss {runs[-1].history.loss[-1]:.4f}, {runs[-1].stopped}")
    rows, details = [], setting.describe() | {"losses": [run.history.loss[-1] for run in runs]}
    shuffled = np.random.default_rng(0).permutation(len(setting.examples))
    drawn, axes = figure(3)
    for axis, (i, j) in zip(axes, itertools.combinations(range(3), 2), strict=True):
        splits = npeff.find_splits(runs[i], runs[j])
        chance = npeff.find_splits(runs[i].coefficients, runs[j].coefficients[shuffled])
        similar = [splits.similarities[k, splits.of(k)].max() for k in range(counts[i]) if splits.counts[k]]
        by_chance = [chance.similarities[k, chance.of(k)].max() for k in range(counts[i]) if chance.counts[k]]
        note = (
            f"{splits.counts.mean():.1f} splits each, cosine of the best {np.mean(similar):.2f}; permuted: "
            f"{np.mean(chance.counts > 0):.0%}, cosine {np.mean(by_chance):.2f}"
        )
        rows.append(Row(f"{counts[i]} to {counts[j]}", "100%", f"{np.mean(splits.counts > 0):.1%}", note))
        details[f"{counts[i]} to {counts[j]}"] = {"counts": splits.counts, "best": similar}
        axis.hist([splits.counts, chance.counts], label=["splits", "permuted"])
        axis.set(title=f"{counts[i]} to {counts[j]}", xlabel="splits of a component", ylabel="components")
        axis.legend()
    script.finish(rows, details, drawn)


if __name__ == "__main__":
    main()
