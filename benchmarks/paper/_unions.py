"""Variables read off a union of several components, terms and cuts chosen on one half of the examples."""

import numpy as np

MOST_TERMS = 8
CUTS = 96
"""Cuts tried of each component: quantiles of its values above the smallest, which is zero for coefficients."""


def union_scores(ranking: np.ndarray, variables: dict[str, np.ndarray], seed: int) -> np.ndarray:
    """The Matthews correlation (terms, 2, v) of each variable with the best union of one to eight cut components.

    A variable is told by "component a is at least x, or component b is at least y, or ..."; the same for its negation.
    Terms are added one by one, each the one that raises the correlation most on one half of the examples; the other
    half scores. Both ways.
    """
    has = np.stack(list(variables.values()), axis=1)
    n = len(has)
    first = np.zeros(n, bool)
    first[np.random.default_rng(seed).permutation(n)[: n // 2]] = True
    found = np.zeros((MOST_TERMS, 2, has.shape[1]))
    for fold, choosing in enumerate((~first, first)):
        here = _masks(ranking, ranking[choosing])
        inside, outside = here[choosing], here[~choosing]
        for v in range(has.shape[1]):
            best = np.full(MOST_TERMS, -1.0)
            for truth in (has[:, v], ~has[:, v]):
                chosen, scored = _grow(inside, truth[choosing], outside, truth[~choosing])
                better = chosen > best
                best[better], found[better, fold, v] = chosen[better], scored[better]
    return found


def _masks(ranking: np.ndarray, chooses: np.ndarray) -> np.ndarray:
    """(n, cuts): examples at or above each cut of each component, cuts from the examples that choose."""
    parts = []
    for column, own in zip(ranking.T, chooses.T, strict=True):
        above = own[own > own.min()]
        if above.size:
            parts.append(column[:, None] >= np.unique(np.quantile(above, np.linspace(0, 0.98, CUTS))))
    return np.concatenate(parts, axis=1)


def _grow(
    inside: np.ndarray, truth: np.ndarray, outside: np.ndarray, other_truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Correlations where chosen and on the other half, for one to eight terms."""
    true, false = inside[truth], inside[~truth]
    covered, wrongly = np.zeros(len(true), bool), np.zeros(len(false), bool)
    union = np.zeros(len(outside), bool)
    chosen, scored = np.zeros(MOST_TERMS), np.zeros(MOST_TERMS)
    hits, errors = np.zeros(inside.shape[1]), np.zeros(inside.shape[1])
    for k in range(MOST_TERMS):
        hits = covered.sum() + true[~covered].sum(axis=0)
        errors = wrongly.sum() + false[~wrongly].sum(axis=0)
        values = _matthews(hits, errors, len(true), len(false))
        term = int(np.argmax(values))
        if k and values[term] <= chosen[k - 1]:
            chosen[k:], scored[k:] = chosen[k - 1], scored[k - 1]
            break
        covered, wrongly, union = covered | true[:, term], wrongly | false[:, term], union | outside[:, term]
        chosen[k] = values[term]
        scored[k] = _matthews(
            (union & other_truth).sum(), (union & ~other_truth).sum(), other_truth.sum(), (~other_truth).sum()
        )
    return chosen, scored


def _matthews(hits: np.ndarray, errors: np.ndarray, n_true: int, n_false: int) -> np.ndarray:
    above = np.asarray(hits + errors, np.float64)
    n = n_true + n_false
    scale = np.sqrt(above * (n - above) * n_true * n_false)
    return np.divide(n * hits - above * n_true, scale, out=np.zeros_like(above), where=scale > 0)
