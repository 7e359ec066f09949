"""Figure 3: does perturbing a component move its own examples, more than their sensitivity explains?

Paper: LRM-NPEFF on two language models, D-NPEFF on a vision model; histograms of log₂ KL ratios lie to the right of
those of PEF norms. The medians are given in section 3.3: 7.64 for the inference model, 4.81 for the vision model.
The inference model has 128 components here; of 512, as in the paper, every fourth is perturbed too.
Beside them: other components' perturbations on the same examples, random directions, the sign that the loss gradient
chooses, what eq. 5 predicts, and plain directions. Norms are summed up twice, because their mean is that of a few
outliers where they range over orders of magnitude.
"""

import numpy as np
from _harness import Row, Script, figure, median
from _settings import language, vision

PAPER = {"language": "7.64", "vision": "4.81"}


def rows_of(name, setting, table, norms):
    better = np.mean(table.kl_ratio > table.pef_norm_ratio)
    typical = np.median(norms[table.top], axis=1) / np.median(norms)
    largest = np.sort(norms)[-len(norms) // 100 :].sum() / norms.sum()
    loss_sign = np.where(table.loss_sign > 0, table.kl_ratios[:, 0], table.kl_ratios[:, 1])
    ceiling = f"ceiling with the top left in {table.ceiling:.0f}"
    return [
        Row(f"{name}: median KL ratio", PAPER[setting.name], median(table.kl_ratio), ceiling),
        Row(f"{name}: the same, sign by the loss gradient", "–", median(loss_sign), "lowers the top examples' loss"),
        Row(
            f"{name}: median PEF-norm ratio",
            "–",
            median(table.pef_norm_ratio),
            f"the confounder; 1% of the examples hold {largest:.0%} of the sum of norms",
        ),
        Row(f"{name}: ratio of median PEF norms", "–", median(typical), "without outliers"),
        Row(f"{name}: KL ratio above PEF-norm ratio", "most", f"{better:.0%} of components"),
        Row(f"{name}: KL ratio under other components", "–", median(table.null_kl_ratio), "same signs' maximum"),
        Row(f"{name}: KL ratio under random directions", "–", median(table.random_kl_ratio), "equal norm"),
        Row(
            f"{name}: other components that reach a component's ratio",
            "–",
            f"{np.nanmean(table.null_exceeds):.1%}",
            "0% is perfect, 50% is chance",
        ),
        Row(f"{name}: rank correlation of eq. 5 with KL", "–", median(table.prediction_correlation)),
        Row(f"{name}: rank correlation of coefficient with KL", "–", median(table.coefficient_correlation)),
    ]


def rows_of_more(name, table):
    """The same question of more components."""
    better = np.mean(table.kl_ratio > table.pef_norm_ratio)
    return [
        Row(f"{name}: median KL ratio", PAPER["language"], median(table.kl_ratio), f"{len(table.components)} of them"),
        Row(f"{name}: median PEF-norm ratio", "–", median(table.pef_norm_ratio), "the confounder"),
        Row(f"{name}: KL ratio above PEF-norm ratio", "most", f"{better:.0%} of components"),
        Row(f"{name}: KL ratio under other components", "–", median(table.null_kl_ratio), "same signs' maximum"),
    ]


def draw(axis, name, table):
    logs = table.log2_ratios()
    edges = np.linspace(-8, 8, 49)
    for label in ("KL", "PEF norm", "other components"):
        axis.hist(np.clip(logs[label][np.isfinite(logs[label])], -8, 8), edges, alpha=0.55, label=label)
    axis.set(title=name, xlabel="log₂ ratio, top to random examples", ylabel="components")
    axis.legend()


def main():
    script = Script("Figure 3: selectivity of perturbations")
    drawn, axes = figure(3)
    rows, details = [], {}
    for axis, make, diagonal in ((axes[0], language, False), (axes[1], vision, True)):
        setting = make(script.cache, script.fast)
        details[setting.name] = setting.describe()
        script.log(f"{setting.name}: {details[setting.name]}")
        name = f"{setting.name}, {'D' if diagonal else 'LRM'}"
        decomposition, fit = setting.decomposition(diagonal=diagonal), setting.fit(diagonal=diagonal)
        script.log(f"loss {decomposition.history.loss[-1]:.4f}, held out {fit.loss:.4f}, {decomposition.stopped}")
        table = setting.selectivity(diagonal=diagonal)
        script.log(repr(table))
        norms = np.asarray(setting.pefs(diagonal=diagonal, heldout=True).norms)
        rows += rows_of(name, setting, table, norms)
        if not diagonal:
            plain = setting.selectivity(reject_below=None)
            rows.append(Row(f"{name}: median KL ratio, plain direction", "–", median(plain.kl_ratio), "not rejected"))
        draw(axis, name, table)
        details[setting.name] |= {
            "loss": decomposition.history.loss[-1],
            "heldout_loss": fit.loss,
            "log2_ratios": table.log2_ratios(),
            "kl_ratios": table.kl_ratios,
            "loss_sign": table.loss_sign,
            "prediction_correlation": table.prediction_correlation,
            "coefficient_correlation": table.coefficient_correlation,
            "norm_quantiles": np.quantile(norms, [0, 0.1, 0.5, 0.9, 0.99, 1]),
        }
    many, setting = (24 if script.fast else 512), language(script.cache, script.fast)
    table = setting.selectivity(r=many, every=4)
    name = f"language, LRM, r={many}"
    script.log(f"{name}: {table!r}")
    rows += rows_of_more(name, table)
    draw(axes[2], name, table)
    details[name] = {"components": table.components, "log2_ratios": table.log2_ratios(), "kl_ratios": table.kl_ratios}
    script.finish(rows, details, drawn)


if __name__ == "__main__":
    main()
