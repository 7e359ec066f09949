"""Figure 3: does perturbing a component move its own examples, more than their sensitivity explains?

Paper: LRM-NPEFF on two language models, D-NPEFF on a vision model; histograms of log₂ KL ratios lie to the right of
those of PEF norms. The medians are given in section 3.3: 7.64 for the inference model, 4.81 for the vision model.
Beside them: other components' perturbations on the same examples, random directions, what eq. 5 predicts, and plain
directions.
"""

import numpy as np
from _harness import Row, Script, figure, language, median, vision

import npeff_jax as npeff


def measure(script, setting, diagonal):
    """Components of the examples, perturbed and judged on the held-out ones."""
    decomposition = npeff.decompose(setting.pefs(diagonal), setting.n_components, seed=0, progress=False)
    script.log(f"{setting.name}: loss {decomposition.history.loss[-1]:.4f}, {decomposition.stopped}")
    heldout = setting.heldout_pefs(diagonal)
    fit = npeff.fit_coefficients(decomposition, heldout)
    options = {"fit": fit, "n_top": setting.n_top, "seed": 0, "progress": False}
    table = npeff.selectivity(setting.model, decomposition, heldout, setting.heldout, **options)
    script.log(repr(table))
    if diagonal:
        return table, None
    plain = npeff.selectivity(setting.model, decomposition, heldout, setting.heldout, **options, reject_below=None)
    script.log(f"plain directions: {plain!r}")
    return table, plain


def rows_of(name, table, plain, paper):
    better = np.mean(table.kl_ratio > table.pef_norm_ratio)
    rows = [
        Row(
            f"{name}: median KL ratio",
            paper,
            median(table.kl_ratio),
            f"ceiling with the top left in {table.ceiling:.0f}",
        ),
        Row(f"{name}: median PEF-norm ratio", "–", median(table.pef_norm_ratio), "the confounder"),
        Row(f"{name}: KL ratio above PEF-norm ratio", "most", f"{better:.0%} of components"),
        Row(
            f"{name}: KL ratio under other components",
            "–",
            median(table.null_kl_ratio),
            "the null, same signs' maximum",
        ),
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
    if plain is not None:
        rows.append(Row(f"{name}: median KL ratio, plain direction", "–", median(plain.kl_ratio), "without rejection"))
    return rows


def draw(axis, name, table):
    logs = table.log2_ratios()
    edges = np.linspace(-3, 8, 45)
    for label in ("KL", "PEF norm", "other components"):
        axis.hist(np.clip(logs[label][np.isfinite(logs[label])], -3, 8), edges, alpha=0.55, label=label)
    axis.set(title=name, xlabel="log₂ ratio, top to random examples", ylabel="components")
    axis.legend()


def main():
    script = Script("Figure 3: selectivity of perturbations")
    drawn, axes = figure(2)
    rows, details = [], {}
    for axis, make, diagonal, paper in ((axes[0], language, False, "7.64"), (axes[1], vision, True, "4.81")):
        setting = make(script.fast)
        details[setting.name] = setting.describe()
        script.log(f"{setting.name}: {details[setting.name]}")
        name = f"{setting.name}, {'D' if diagonal else 'LRM'}"
        table, plain = measure(script, setting, diagonal)
        rows += rows_of(name, table, plain, paper)
        draw(axis, name, table)
        details[setting.name] |= {
            "log2_ratios": table.log2_ratios(),
            "kl_ratios": table.kl_ratios,
            "sign": table.sign,
            "prediction_correlation": table.prediction_correlation,
            "coefficient_correlation": table.coefficient_correlation,
        }
    script.finish(rows, details, drawn)


if __name__ == "__main__":
    main()
