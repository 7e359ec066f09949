"""The mark of a component: whether the model uses it for its examples, and what that is said from."""

from collections.abc import Sequence
from typing import Any

from npeff_jax.report._component import Causal, Evidence

USED, WEAK, NONE, UNKNOWN = "used by the model", "weak evidence", "no evidence", "not measured"
"""The four marks, strongest first."""

MARGIN = 1.5
"""A KL ratio must exceed its null and the ratio of PEF norms by this factor to count as use: half as much again."""


def evidence_of(causal: Causal | None) -> Evidence:
    """Mark a component by its KL ratio against the largest of 1, its null and the ratio of PEF norms."""
    if causal is None or causal.kl_ratio is None:
        return Evidence(UNKNOWN, "No perturbation was measured for it.")
    most = max(1.0, causal.null_kl_ratio or 0.0, causal.pef_norm_ratio or 0.0)
    told = f"KL ratio {causal.kl_ratio:.3g} against {most:.3g}, the largest of its null, the PEF norms and 1"
    if causal.kl_ratio > MARGIN * most:
        return Evidence(USED, f"{told}.")
    return Evidence(WEAK if causal.kl_ratio > most else NONE, f"{told}; {MARGIN:g} times as much would count as use.")


def audited(audit: Any, r: int) -> Sequence[Evidence] | None:
    """Read the marks of an audit, one per component.

    Args:
        audit: what has ``marks``, r of the four marks, and ``reasons``, r sentences; or None.
        r: components of the decomposition.

    Raises:
        TypeError: it has no marks.
        ValueError: the marks are not r, or none of the four.
    """
    if audit is None:
        return None
    if not (hasattr(audit, "marks") and hasattr(audit, "reasons")):
        raise TypeError(
            f"audit is of type {type(audit).__name__}; expected the result of audit, with marks and reasons"
        )
    marks, reasons = [str(mark) for mark in audit.marks], [str(reason) for reason in audit.reasons]
    strange = sorted(set(marks) - {USED, WEAK, NONE, UNKNOWN})
    if len(marks) != r or len(reasons) != r or strange:
        got = f"the marks {strange}" if strange else f"{len(marks)} marks and {len(reasons)} reasons"
        raise ValueError(f"audit has {got}; expected one of {(USED, WEAK, NONE, UNKNOWN)} for each of {r} components")
    return [Evidence(mark, reason) for mark, reason in zip(marks, reasons)]
