"""The verdict on whether the model uses a component for its examples."""

from npeff_jax.report._component import Audited, Causal, Evidence

USED, WEAK, NONE, UNKNOWN = "used by the model", "weak evidence", "no evidence", "not measured"
"""The four marks, strongest first."""

MARGIN = 1.5
"""Factor by which a KL ratio must exceed its null and the ratio of PEF norms to count as use."""


def evidence_of(causal: Causal | None, audited: Audited | None = None) -> Evidence:
    """Decide how strong the evidence is that the model uses a component, from its audit or else its KL ratio.

    With an audit, the mark is `USED` if every check that applies passes, `WEAK` if only some pass but selectivity does,
    else `NONE`. Without one, the KL ratio is compared with the largest of 1, its null and the ratio of PEF norms.
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
