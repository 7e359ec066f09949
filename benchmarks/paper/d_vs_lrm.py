"""Section 3.3, D-NPEFF against LRM-NPEFF: which flavour's perturbations are more selective, on which kind of model?

Paper, median KL ratios: language 5.26 (D) and 7.64 (LRM), vision 4.81 (D) and 2.45 (LRM). It suspects that the vision
model's LRM-PEFs lose too much when K entries must serve many rows; the error of the kept part is therefore shown.
Diagonal and low-rank components perturb in different ways (appendix C, section 2.3), as there.
"""

import numpy as np
from _harness import Row, Script, figure, language, median, vision

import npeff_jax as npeff

PAPER = {("language", True): "5.26", ("language", False): "7.64", ("vision", True): "4.81", ("vision", False): "2.45"}


def main():
    script = Script("D-NPEFF against LRM-NPEFF: selectivity")
    drawn, axes = figure(2)
    rows, details = [], {}
    for axis, make in zip(axes, (language, vision), strict=True):
        setting = make(script.fast)
        details[setting.name] = setting.describe()
        for diagonal in (True, False):
            name = f"{setting.name}, {'D' if diagonal else 'LRM'}"
            pefs, heldout = setting.pefs(diagonal), setting.heldout_pefs(diagonal)
            decomposition = npeff.decompose(pefs, setting.n_components, seed=0, progress=False)
            fit = npeff.fit_coefficients(decomposition, heldout)
            options = {"fit": fit, "n_top": setting.n_top, "seed": 0, "progress": False}
            table = npeff.selectivity(setting.model, decomposition, heldout, setting.heldout, **options)
            script.log(f"{name}: {table!r}")
            error, rank = np.median(pefs.fisher_error), np.median(pefs.n_rows)
            note = (
                f"Fisher error of the kept part {error:.3f}, {rank:.0f} rows, loss {decomposition.history.loss[-1]:.3f}"
            )
            rows += [
                Row(f"{name}: median KL ratio", PAPER[setting.name, diagonal], median(table.kl_ratio), note),
                Row(f"{name}: under other components", "–", median(table.null_kl_ratio), "the null"),
                Row(f"{name}: PEF-norm ratio", "–", median(table.pef_norm_ratio), "the confounder"),
            ]
            details[name] = {"kl_ratios": table.kl_ratios, "null": table.null_kl_ratio, "norms": table.norms}
            logs = table.log2_ratios()["KL"]
            axis.hist(np.clip(logs[np.isfinite(logs)], -3, 8), np.linspace(-3, 8, 45), alpha=0.55, label=name)
        axis.set(xlabel="log₂ KL ratio", ylabel="components", title=setting.name)
        axis.legend()
    script.finish(rows, details, drawn)


if __name__ == "__main__":
    main()
