"""The components of a single example."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from npeff_jax._checks import check_integer
from npeff_jax._html import facts_html, table_html
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.pefs import Pefs
from npeff_jax.report._shelf import shelf_of


@dataclasses.dataclass(frozen=True)
class ExplainedExample:
    """The components of one example, largest coefficient first.

    Attributes:
        index: position of the example.
        components: components with a positive coefficient, at most ``n_components``.
        coefficients: coefficients of these components.
        ranks: rank of the example among all examples by each component's coefficient, from 1.
        predicted: (class, probability), most probable first, at most three; empty if not known.
        label: name of the example's label; None without labels.
        explained: 1 − ‖F_i − Σ_j W_ij H_j‖² / ‖F_i‖², over all components; None if the coefficients were not fitted.
        n_used: components with a positive coefficient.
        n_examples: number of examples.
    """

    index: int
    components: tuple[int, ...]
    coefficients: tuple[float, ...]
    ranks: tuple[int, ...]
    predicted: tuple[tuple[str, float], ...]
    label: str | None
    explained: float | None
    n_used: int
    n_examples: int

    def __repr__(self) -> str:
        rows = zip(self.components, self.coefficients, self.ranks)
        lines = [f"  component {j:>4}  coefficient {w:.4g}, rank {k:,} of {self.n_examples:,}" for j, w, k in rows]
        return "\n".join(
            [f"Example {self.index}: {'; '.join(f'{name} {value}' for name, value in self._facts())}", *lines]
        )

    def _repr_html_(self) -> str:
        rows = [(j, f"{w:.4g}", k) for j, w, k in zip(self.components, self.coefficients, self.ranks)]
        table = table_html(("component", "coefficient", f"rank of {self.n_examples:,}"), rows)
        return facts_html(f"Example {self.index}", self._facts(), table)

    def _facts(self) -> list[tuple[str, str]]:
        facts = [("components", f"{len(self.components)} of {self.n_used} that it uses")]
        if self.predicted:
            facts.append(("predicted", ", ".join(f"{name} {p:.1%}" for name, p in self.predicted)))
        if self.label is not None:
            facts.append(("labelled", self.label))
        if self.explained is not None:
            facts.append(("explained", f"{self.explained:.1%}"))
        return facts


def explain_example(
    decomposition: Decomposition,
    example: int,
    pefs: Pefs | None = None,
    fit: Any = None,
    *,
    model: Model | None = None,
    class_names: Sequence[str] | None = None,
    n_components: int = 8,
) -> ExplainedExample:
    """Find the components of one example, with its prediction, label and explained fraction.

    Args:
        decomposition: the components.
        example: position of the example, in ``pefs`` if given, else among the examples that were decomposed.
        pefs: PEFs of the examples, which hold predictions and labels.
        fit: coefficients of ``pefs``, from `fit_coefficients`; by default those of the decomposition.
        model: source of the output family and the class names.
        class_names: names of the classes, instead of those of ``model``.
        n_components: maximum number of components to list.

    Raises:
        IndexError, ValueError: If there is no such example, or the arguments do not belong together.

    Examples:
        >>> found = explain_example(decomposition, 3, pefs)
        >>> found.index, len(found.components) <= 8
        (3, True)
    """
    from npeff_jax.report._write import check_belongs

    n_components = check_integer("n_components", n_components, 1, None)
    check_belongs(decomposition, pefs, fit, None, model)
    shelf = shelf_of(decomposition, pefs, None if fit is None else np.asarray(fit.coefficients), model, None)
    n = len(shelf.coefficients)
    if isinstance(example, bool) or not isinstance(example, int | np.integer) or not -n <= example < n:
        raise IndexError(f"example={example!r}; expected the position of one of the {n} examples, 0 to {n - 1}")
    i = int(example) % n
    column = shelf.coefficients[i]
    used = np.argsort(-column, kind="stable")[: int((column > 0).sum())]
    shown = used[:n_components]
    names = class_names if class_names is not None else None if model is None else model.label_names
    name = (lambda c: str(names[c])) if names is not None else str
    likely = np.argsort(-shelf.probabilities[i], kind="stable")[:3]
    losses = getattr(fit, "example_loss", None)
    return ExplainedExample(
        index=i,
        components=tuple(int(j) for j in shown),
        coefficients=tuple(float(column[j]) for j in shown),
        ranks=tuple(int((shelf.coefficients[:, j] > column[j]).sum()) + 1 for j in shown),
        predicted=tuple((name(int(c)), float(shelf.probabilities[i, c])) for c in likely),
        label=None if shelf.labels is None else name(int(shelf.labels[i])),
        explained=None if losses is None else 1.0 - float(losses[i]),
        n_used=len(used),
        n_examples=n,
    )
