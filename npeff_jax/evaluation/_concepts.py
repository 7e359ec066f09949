"""Search for known concepts that the top examples of each component share: variables, and ANDs of two or three."""

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from npeff_jax._checks import check_integer
from npeff_jax._html import facts_html, table_html
from npeff_jax.evaluation._ranking import coefficient_array, top_examples

Variables = Mapping[str, Sequence[bool] | np.ndarray]
"""Per Boolean variable, whether it holds for each of n examples."""


@dataclasses.dataclass(frozen=True, eq=False)
class ConceptSearch:
    """Concepts, and how well each component's ranking of the examples agrees with them.

    Attributes:
        names: names of the concepts; the variables of an AND are joined by " & ".
        base: (concepts,), fraction of all examples with the concept.
        share: (r, concepts), fraction of each component's top examples with the concept.
        eligible: (r, concepts), whether the concept counts for the component. It does not if the predicted labels of
            the top examples imply it.
        average_precision: (r, concepts), average precision of ranking the examples by the component's coefficients,
            with the concept as the positive class.
        n_positive: (r,), number of examples with a positive coefficient. If they are fewer than ``n_top``, the top
            examples include ties at zero, in the order of the examples.
        permuted_n_shared: (permutations, r), `n_shared` with each component's coefficients permuted over the examples.
        n_top: number of top examples per component.
    """

    names: tuple[str, ...]
    base: Float[np.ndarray, "concepts"]
    share: Float[np.ndarray, "r concepts"]
    eligible: Bool[np.ndarray, "r concepts"]
    average_precision: Float[np.ndarray, "r concepts"]
    n_positive: Int[np.ndarray, "r"]
    permuted_n_shared: Int[np.ndarray, "permutations r"]
    n_top: int

    @property
    def best(self) -> Int[np.ndarray, "r"]:
        """(r,), the eligible concept with the largest excess of the share among top examples over its base rate."""
        return np.where(self.eligible, self.share - self.base, -np.inf).argmax(1)

    @property
    def best_average_precision(self) -> Float[np.ndarray, "r"]:
        """(r,), the highest average precision of each component over the eligible concepts."""
        return np.where(self.eligible, self.average_precision, 0).max(1)

    @property
    def n_shared(self) -> Int[np.ndarray, "r"]:
        """(r,), number of eligible concepts that all top examples of the component have."""
        return ((self.share == 1) & self.eligible).sum(1)

    @property
    def shared(self) -> Bool[np.ndarray, "r"]:
        """(r,), whether all top examples of the component share an eligible concept."""
        return self.n_shared > 0

    @property
    def permuted_shared(self) -> Bool[np.ndarray, "permutations r"]:
        """Whether all top examples share a concept after permuting coefficients over the examples."""
        return self.permuted_n_shared > 0

    @property
    def found(self) -> collections.Counter[str]:
        """Number of components per concept, where a component counts for the rarest concept its top examples share."""
        return collections.Counter(self.shared_names(j)[0] for j in np.flatnonzero(self.shared).tolist())

    def shared_names(self, component: int) -> tuple[str, ...]:
        """Return the names of the eligible concepts that all top examples of a component have, rarest first."""
        found = np.flatnonzero((self.share[component] == 1) & self.eligible[component])
        return tuple(self.names[i] for i in found[np.argsort(self.base[found], kind="stable")])

    def note(self, component: int) -> str:
        """Return a line of text about the concept that a component's top examples share."""
        best = self.best[component]
        own, base = self.share[component, best], self.base[best]
        return f"{self.names[best]}: {own:.0%} of its top {self.n_top} examples, {base:.0%} of all"

    def _repr_html_(self) -> str:
        facts = [
            ("components whose top examples all share a concept", f"{self.shared.sum()} of {len(self.best)}"),
            ("with permuted coefficients", float(self.permuted_shared.sum(1).mean())),
        ]
        own, base = self.share[np.arange(len(self.best)), self.best], self.base[self.best]
        heads = ("component", f"concept of its top {self.n_top}", "have it", "of all")
        order = np.argsort(base - own, kind="stable")
        rows = [(int(j), self.names[self.best[j]], f"{own[j]:.0%}", f"{base[j]:.0%}") for j in order]
        return facts_html("Known concepts", facts, table_html(heads, rows, most=40))

    def __str__(self) -> str:
        chance_each = (
            self.permuted_n_shared.mean(0) if len(self.permuted_n_shared) else np.full(len(self.share), np.nan)
        )
        lines = []
        for j, best in enumerate(self.best):
            nearest = f"none; nearest {self.names[best]} ({self.share[j, best]:.0%})"
            shared = self.shared_names(j)[0] if self.shared[j] else nearest
            lines.append(f"component {j}: {self.n_shared[j]} shared, permuted {chance_each[j]:.1f}: {shared}")
        chance = self.permuted_shared.sum() / max(len(self.permuted_n_shared), 1)
        lines.append(
            f"{self.shared.sum()} of {len(self.share)} components share a concept in all of their top {self.n_top} "
            f"examples, {len(self.found)} different ones; {chance:.1f} with permuted coefficients"
        )
        return "\n".join(lines)


def search_concepts(
    coefficients: Float[np.ndarray, "n r"],
    variables: Variables,
    *,
    predictions: Int[np.ndarray, "n"] | None = None,
    max_terms: int = 1,
    n_top: int = 16,
    n_permutations: int = 20,
    seed: int = 0,
) -> ConceptSearch:
    """Search for the concepts that all top examples of a component have (section 3.2).

    A concept is a variable, or an AND of up to ``max_terms`` variables, that at most half of the examples have; more
    frequent ones say little. Of several concepts that hold for the same examples, the first with the fewest terms is
    kept.

    Args:
        coefficients: W, or another ranking of n examples by r columns, such as `control_rankings`.
        variables: per variable, whether it holds for each of the n examples. Add their `negations` to search for these
            too.
        predictions: (n,), predicted class per example. If given, a concept does not count for a component if it holds
            for every example with one of the classes predicted for its top examples.
        max_terms: maximum number of variables in an AND.
        n_top: number of top examples per component.
        n_permutations: number of permutations of the coefficients, for comparison.
        seed: seed of the permutations.

    Raises:
        ValueError: a variable of the wrong length, or no concept that at most half of the examples have.

    Examples:
        >>> found = search_concepts(fit.coefficients, {"wrong": labels == 0}, n_top=3)
        >>> found.share.shape
        (3, 1)
    """
    coefficients = coefficient_array(coefficients)
    n, r = coefficients.shape
    names, has = _concepts(variables, n, check_integer("max_terms", max_terms))
    n_top = check_integer("n_top", n_top, 1, n)
    predictions = np.zeros(n, np.int64) if predictions is None else np.asarray(predictions)
    if predictions.shape != (n,):
        raise ValueError(f"predictions has shape {predictions.shape}; expected ({n},), the predicted class per example")
    labels, predictions = np.unique(predictions, return_inverse=True)
    implied = np.stack([has[predictions == label].all(0) for label in range(len(labels))])

    def look(W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tops = [top_examples(W, j, n_top) for j in range(r)]
        share = np.stack([has[top].mean(0) for top in tops])
        return share, ~np.stack([implied[np.unique(predictions[top])].all(0) for top in tops])

    share, eligible = look(coefficients)
    random = np.random.default_rng(seed)
    chance = np.zeros((n_permutations, r), np.int64)
    for row in chance:
        own, may = look(random.permuted(coefficients, axis=0))
        row[:] = ((own == 1) & may).sum(1)
    return ConceptSearch(
        names=names,
        base=has.mean(0),
        share=share,
        eligible=eligible,
        average_precision=np.stack([_average_precision(has[top_examples(coefficients, j, n)]) for j in range(r)]),
        n_positive=(np.asarray(coefficients) > 0).sum(0),
        permuted_n_shared=chance,
        n_top=n_top,
    )


def negations(variables: Variables) -> dict[str, Bool[np.ndarray, "n"]]:
    """Return the negation of each variable, named "not …".

    Examples:
        >>> negations({"long": [True, False]})["not long"].tolist()
        [False, True]
    """
    return {f"not {name}": ~np.asarray(has, bool) for name, has in variables.items()}


def truth_table(variables: Variables, n: int) -> dict[str, Bool[np.ndarray, "n"]]:
    """Return variables as Boolean arrays.

    Raises:
        TypeError: ``variables`` is not a mapping from names to truth values.
        ValueError: a variable of the wrong length, or with values other than true and false.
    """
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables is a {type(variables).__name__}; expected {{name: truth values}}")
    table = {}
    for name, values in variables.items():
        has = np.asarray(values)
        if has.shape != (n,):
            raise ValueError(f"variable {name!r} has shape {has.shape}; expected ({n},), a truth value per example")
        if has.dtype != bool and not np.isin(has, (0, 1)).all():
            raise ValueError(f"variable {name!r} has values other than true and false; make it Boolean")
        table[name] = has.astype(bool)
    return table


def _concepts(variables: Variables, n: int, max_terms: int) -> tuple[tuple[str, ...], Bool[np.ndarray, "n concepts"]]:
    """Return names and truth values of variables and their ANDs, one per distinct set of examples."""
    table = truth_table(variables, n)
    known: dict[bytes, tuple[str, np.ndarray]] = {}
    for terms in itertools.chain.from_iterable(itertools.combinations(table, k + 1) for k in range(max_terms)):
        has = np.logical_and.reduce([table[name] for name in terms])
        if 0 < has.mean() <= 0.5:
            known.setdefault(has.tobytes(), (" & ".join(terms), has))
    if not known:
        raise ValueError("every concept holds for more than half of the examples, or for none; look for rarer ones")
    names, columns = zip(*known.values(), strict=True)
    return names, np.stack(columns, axis=1)


def _average_precision(ranked: Bool[np.ndarray, "n concepts"]) -> Float[np.ndarray, "concepts"]:
    """Compute the average precision of every concept, from whether each example has it, in ranked order."""
    hits = ranked.cumsum(0)
    return (ranked * hits / np.arange(1, len(ranked) + 1)[:, None]).sum(0) / hits[-1]
