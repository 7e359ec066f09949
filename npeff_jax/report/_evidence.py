"""The verdict on whether the model uses a component for its examples."""

from npeff_jax.report._component import Audited, Causal, Evidence

USED, WEAK, NONE, UNKNOWN = "used by the model", "weak evidence", "no evidence", "not measured"
"""The four marks, strongest first."""

MARGIN = 1.5
"""A KL ratio must exceed its null and the ratio of PEF norms by this factor to count as use: half as much again."""


def evidence_of(causal: Causal | None, audited: Audited | None = None) -> Evidence:
    """Mark a component by its audit, else by its KL ratio.

    Audited: used if it passes all checks that apply; weak if it fails some but passes that of selectivity; else none.
    Otherwise by the KL ratio against the largest of 1, its null and the ratio of PEF norms.
    """
    if audited is not None:
        selective = any(check.name == "selective" and check.result == "passed" for check in audited.checks)
        mark = USED if audited.passed else WEAK if selective else NONE
        return Evidence(mark, f"Its audit {audited.verdict}.")
    if causal is None or causal.kl_ratio is None:
        return Evidence(UNKNOWN, "No perturbation was measured for it.")
    most = max(1.0, causal.null_kl_ratio or 0.0, causal.pef_norm_ratio or 0.0)
    told = f"KL ratio {causal.kl_ratio:.3g} against {most:.3g}, the largest of its null, the PEF norms and 1"
    if causal.kl_ratio > MARGIN * most:
        return Evidence(USED, f"{told}.")
    return Evidence(WEAK if causal.kl_ratio > most else NONE, f"{told}; {MARGIN:g} times as much would count as use.")
