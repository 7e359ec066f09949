"""Section 3.3, D-NPEFF against LRM-NPEFF: which flavour's perturbations are more selective, on which kind of model?

Paper, median KL ratios: language 5.26 (D) and 7.64 (LRM), vision 4.81 (D) and 2.45 (LRM). It suspects that the vision
model's LRM-PEFs lose too much when K entries must serve many rows; the error of the kept part is therefore shown.
Diagonal and low-rank components perturb in different ways (appendix C, section 2.3), as there.
"""

import numpy as np
from _harness import Row, Script, figure, median
from _settings import language, vision

PAPER = {("language", True): "5.26", ("language", False): "7.64", ("vision", True): "4.81", ("vision", False): "2.45"}


def main():
    script = Script("D-NPEFF against LRM-NPEFF: selectivity")
    drawn, axes = figure(2)
    rows, details = [], {}
    for axis, make in zip(axes, (language, vision), strict=True):
        setting = make(script.cache, script.fast)
        details[setting.name] = setting.describe()
        for diagonal in (True, False):
            name = f"{setting.name}, {'D' if diagonal else 'LRM'}"
            pefs, decomposition = setting.pefs(diagonal=diagonal), setting.decomposition(diagonal=diagonal)
            script.log(f"{name}: loss {decomposition.history.loss[-1]:.4f}, {decomposition.stopped}")
            table = setting.selectivity(diagonal=diagonal)
            script.log(f"{name}: {table!r}")
            note = (
                f"Fisher error of the kept part {np.median(pefs.fisher_error):.3f}, {np.median(pefs.n_rows):.0f} rows, "
                f"loss {decomposition.history.loss[-1]:.3f}"
            )
            still = np.mean((table.norms == 0).any(axis=1))
            above = np.mean(table.kl_ratio > table.null_kl_ratio)
            rows += [
                Row(f"{name}: median KL ratio", PAPER[setting.name, diagonal], median(table.kl_ratio), note),
                Row(f"{name}: under other components", "–", median(table.null_kl_ratio), f"{above:.0%} are above it"),
                Row(f"{name}: PEF-norm ratio", "–", median(table.pef_norm_ratio), "the confounder"),
            ]
            if diagonal:
                rows.append(Row(f"{name}: a sign without an edit", "–", f"{still:.0%}", "KL range out of reach"))
            details[name] = {"kl_ratios": table.kl_ratios, "null": table.null_kl_ratio, "norms": table.norms}
            logs = table.log2_ratios()["KL"]
            axis.hist(np.clip(logs[np.isfinite(logs)], -8, 8), np.linspace(-8, 8, 49), alpha=0.55, label=name)
        axis.set(xlabel="log₂ KL ratio", ylabel="components", title=setting.name)
        axis.legend()
    script.finish(rows, details, drawn)


if __name__ == "__main__":
    main()
