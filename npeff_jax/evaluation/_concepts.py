"""Which known concept the top examples of each component share, against chance."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from npeff_jax._html import facts_html, table_html
from npeff_jax.evaluation._ranking import top_examples


@dataclasses.dataclass(frozen=True, eq=False)
class ConceptSearch:
    """Concepts, and how many of each component's top examples have them.

    Attributes:
        names: of the concepts.
        base: (concepts,), fraction of all examples that have each.
        share: (r, concepts), fraction of each component's top examples that have it.
        best: (r,), the concept that its top examples have most beyond its base rate.
        permuted_n_shared: (permutations, r), `n_shared` when coefficients are permuted over the examples, component by
            component: what chance does.
        n_top: top examples looked at.
    """

    names: tuple[str, ...]
    base: Float[np.ndarray, "concepts"]
    share: Float[np.ndarray, "r concepts"]
    best: Int[np.ndarray, "r"]
    permuted_n_shared: Int[np.ndarray, "permutations r"]
    n_top: int

    @property
    def n_shared(self) -> Int[np.ndarray, "r"]:
        """How many concepts all top examples of a component have."""
        return (self.share == 1).sum(1)

    @property
    def shared(self) -> Bool[np.ndarray, "r"]:
        """Whether all top examples of a component share some concept."""
        return self.n_shared > 0

    @property
    def permuted_shared(self) -> Bool[np.ndarray, "permutations r"]:
        """Whether they share some concept when coefficients are permuted."""
        return self.permuted_n_shared > 0

    def shared_names(self, component: int) -> tuple[str, ...]:
        """The concepts that all of a component's top examples have, rarest first."""
        found = np.flatnonzero(self.share[component] == 1)
        return tuple(self.names[i] for i in found[np.argsort(self.base[found], kind="stable")])

    def note(self, component: int) -> str:
        """What the component's top examples share, in a line."""
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
        chance_each = self.permuted_n_shared.mean(0)
        lines = []
        for j, best in enumerate(self.best):
            nearest = f"none; nearest {self.names[best]} ({self.share[j, best]:.0%})"
            shared = ", ".join(self.shared_names(j)) or nearest
            lines.append(f"component {j}: {self.n_shared[j]} shared, permuted {chance_each[j]:.1f}: {shared}")
        chance = self.permuted_shared.sum(1).mean()
        lines.append(
            f"{self.shared.sum()} of {len(self.best)} components share a concept in all of their top {self.n_top} "
            f"examples; {chance:.1f} with permuted coefficients"
        )
        return "\n".join(lines)


def search_concepts(
    coefficients: Float[np.ndarray, "n r"],
    concepts: Mapping[str, Sequence[bool] | np.ndarray],
    *,
    n_top: int = 16,
    n_permutations: int = 20,
    seed: int = 0,
) -> ConceptSearch:
    """Look among known concepts for the one that each component's top examples share.

    Args:
        coefficients: W.
        concepts: for each concept whether each of the n examples has it. Concepts that more than half of the examples
            have are left out: that top examples share them says little.
        n_top: top examples of each component.
        n_permutations: of the coefficients, for comparison.
        seed: of the permutations.

    Raises:
        ValueError: a concept is given for another number of examples, or none is rare enough to be looked for.
    """
    n, r = coefficients.shape
    table = {name: np.asarray(has, bool) for name, has in concepts.items()}
    for name, has in table.items():
        if has.shape != (n,):
            raise ValueError(f"concept {name!r} has shape {has.shape}; expected ({n},), a truth value an example")
    table = {name: has for name, has in table.items() if has.mean() <= 0.5}
    if not table:
        raise ValueError("every concept holds for more than half of the examples; look for rarer ones")
    has = np.stack(list(table.values()), axis=1)
    share = _share(coefficients, has, n_top)
    random = np.random.default_rng(seed)
    permuted = [_share(random.permuted(coefficients, axis=0), has, n_top) for _ in range(n_permutations)]
    return ConceptSearch(
        names=tuple(table),
        base=has.mean(0),
        share=share,
        best=(share - has.mean(0)).argmax(1),
        permuted_n_shared=(np.array(permuted).reshape(n_permutations, r, -1) == 1).sum(2),
        n_top=n_top,
    )


def _share(
    W: Float[np.ndarray, "n r"], has: Bool[np.ndarray, "n concepts"], n_top: int
) -> Float[np.ndarray, "r concepts"]:
    return np.stack([has[np.asarray(top_examples(W, j, n_top))].mean(0) for j in range(W.shape[1])])
