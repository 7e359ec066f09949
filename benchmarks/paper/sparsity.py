"""Section 3.3, sparsity: do components survive keeping four or sixteen times fewer values an example?

Paper: K = 16,384, 65,536 and 262,144 on BERT-base. Mean maximum cosine of coefficients against the other runs: 0.77
for the smallest K; 0.76 and 0.80; 0.77 and 0.80. Here K = 1,024, 4,096 and 16,384 of 40,262 values. Two controls tell
what these numbers are worth: the same K from other seeds (what any change costs), and coefficients permuted over
examples (what chance gives).
"""

import itertools

import numpy as np
from _harness import Row, Script, figure
from _settings import language

import npeff_jax as npeff

PAPER = {(0, 1): "0.77", (0, 2): "0.77", (1, 0): "0.76", (1, 2): "0.80", (2, 0): "0.77", (2, 1): "0.80"}


def main():
    script = Script("Sparsity: mean maximum cosine of coefficients between runs that keep K values")
    setting = language(script.cache, script.fast)
    counts = (setting.keep // 4, setting.keep, 4 * setting.keep)
    runs, error = [], []
    for keep in counts:
        runs.append(setting.decomposition(keep=keep))
        error.append(float(np.median(setting.pefs(keep=keep).fisher_error)))
        script.log(f"K={keep}: Fisher error {error[-1]:.3f}, loss {runs[-1].history.loss[-1]:.4f}, {runs[-1].stopped}")
    rows, similar = [], np.eye(3)
    for i, j in itertools.permutations(range(3), 2):
        comparison = npeff.compare_runs(runs[i], runs[j])
        similar[i, j] = comparison.forward.mean()
        note = f"matched one to one {comparison.matched.mean():.2f}; Fisher error {error[i]:.2f} and {error[j]:.2f}"
        rows.append(Row(f"K={counts[i]} against {counts[j]}", PAPER[i, j], f"{similar[i, j]:.2f}", note))
    seeds = npeff.evaluation.stability([runs[1], *(setting.decomposition(seed=seed) for seed in (1, 2))])
    shuffled = np.random.default_rng(0).permutation(len(setting.examples))
    chance = npeff.compare_runs(runs[1], runs[1].coefficients[shuffled])
    rows.append(
        Row(f"K={counts[1]}, three seeds", "–", f"{seeds.mean_max[~np.eye(3, dtype=bool)].mean():.2f}", "the same PEFs")
    )
    rows.append(Row(f"K={counts[1]}, permuted", "–", f"{chance.forward.mean():.2f}", "chance"))
    drawn, axes = figure(1)
    shown = axes[0].imshow(similar, vmin=0, vmax=1)
    axes[0].set(xticks=range(3), yticks=range(3), xticklabels=counts, yticklabels=counts, xlabel="K", ylabel="K")
    drawn.colorbar(shown, label="mean maximum cosine")
    details = setting.describe() | {"similarities": similar, "fisher_error": error, "counts": counts}
    script.finish(rows, details, drawn)


if __name__ == "__main__":
    main()
