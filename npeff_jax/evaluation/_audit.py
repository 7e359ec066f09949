"""`audit`: five checks of every component, with their nulls, and a verdict."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from npeff_jax._checks import as_instance, check_integer
from npeff_jax._html import facts_html, table_html
from npeff_jax._identity import check_same
from npeff_jax._progress import Progress, progress_bar
from npeff_jax._types import Components, Examples
from npeff_jax.evaluation import _audit_checks as checks
from npeff_jax.evaluation._audit_checks import Check, Thresholds
from npeff_jax.evaluation._belonging import check_belong_together
from npeff_jax.evaluation._nulls import Nulls
from npeff_jax.evaluation._readable import Rules
from npeff_jax.evaluation._selectivity import Fitted, selectivity
from npeff_jax.evaluation._selectivity_table import Selectivity
from npeff_jax.factorization import Decomposition, decompose, fit_coefficients
from npeff_jax.models import Model
from npeff_jax.pefs import FisherKind, Pefs
from npeff_jax.perturbation import KLBudget, choose_components

NATS = 0.01
"""Mean KL of a component's move on its top examples, in nats: small enough for equation 2 to hold on trained networks,
large enough for float32."""


@dataclasses.dataclass(frozen=True, eq=False)
class Audit:
    """Results of five checks of c components. A component passes if it passes every check that applies.

    Attributes:
        components: (c,), indices of the components.
        checks: "selective", "found again", "held out", "readable" and "predicted", in this order.
    """

    components: Int[np.ndarray, "c"]
    checks: tuple[Check, ...]

    def __getitem__(self, name: str) -> Check:
        """Return a check by name."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"{name!r} is no check of this audit; it has {[check.name for check in self.checks]}")

    @property
    def applicable(self) -> tuple[Check, ...]:
        """The checks that apply."""
        return tuple(check for check in self.checks if not check.not_applicable)

    @property
    def passed(self) -> Bool[np.ndarray, "c"]:
        """(c,), whether each component passes every check that applies; all False if no check applies."""
        if not self.applicable:
            return np.zeros(len(self.components), bool)
        return np.logical_and.reduce([check.passed for check in self.applicable])

    def verdict(self, component: int) -> str:
        """Return in a few words whether a component passes, or which checks it fails.

        Raises:
            ValueError: the component was not audited.
        """
        place = self.place(component)
        if place is None:
            raise ValueError(f"component {component} was not audited; this audit has {self.components.tolist()}")
        failed = [check.name for check in self.applicable if not check.passed[place]]
        if failed:
            return "fails: " + ", ".join(failed)
        missing = len(self.checks) - len(self.applicable)
        return (
            f"passes all {len(self.checks)}"
            if not missing
            else f"passes {len(self.applicable)}, {missing} not applicable"
        )

    def place(self, component: int) -> int | None:
        """Return the position of a component in the arrays of the checks; None if it was not audited."""
        found = np.flatnonzero(self.components == component)
        return int(found[0]) if found.size else None

    def __repr__(self) -> str:
        c = len(self.components)
        said = [
            f"{check.name} {'not applicable' if check.not_applicable else int(check.passed.sum())}"
            for check in self.checks
        ]
        return f"Audit: {int(self.passed.sum())} of {c} components pass every check that applies ({', '.join(said)})"

    def __str__(self) -> str:
        heads = ["component", *(check.name for check in self.checks), "verdict"]
        table = [heads, *self._rows()]
        widths = [max(len(row[k]) for row in table) for k in range(len(heads))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
        why = [f"{check.name}: not applicable, {check.not_applicable}" for check in self.checks if check.not_applicable]
        return "\n".join([*lines, *why, repr(self)])

    def _rows(self) -> list[list[str]]:
        return [
            [str(j), *(_cell(check, place) for check in self.checks), self.verdict(j)]
            for place, j in enumerate(self.components.tolist())
        ]

    def _repr_html_(self) -> str:
        heads = ["component", *(check.name for check in self.checks), "verdict"]
        facts = [
            (f"not applicable: {check.name}", check.not_applicable) for check in self.checks if check.not_applicable
        ]
        return facts_html(repr(self), facts, table_html(heads, self._rows(), most=64))


def audit(
    model: Model,
    decomposition: Decomposition,
    pefs: Pefs,
    examples: Examples,
    *,
    fit: Fitted,
    decomposed: Pefs | None = None,
    runs: Mapping[str, Fitted | np.ndarray] | None = None,
    readable: Any = None,
    table: Selectivity | None = None,
    components: Components | Bool[np.ndarray, "r"] | None = None,
    n_top: int | None = 16,
    n_seeds: int = 2,
    thresholds: Thresholds = Thresholds(),  # noqa: B008 (frozen)
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = True,
    **options: Any,
) -> Audit:
    """Check every component in five ways, each with a null distribution and a threshold fixed beforehand.

    1. *selective*: the component's move changes its top examples more than other components' moves do. The moves are
       those of `selectivity`, with both signs at one norm: the larger mean KL is 0.01 nats on the top examples, or less
       where equation 2 does not hold that far (`KLBudget`).
    2. *found again*: runs with other seeds, and a run on the held-out examples only, find the component.
    3. *held out*: its coefficients are as concentrated on held-out examples as on decomposed ones.
    4. *readable*: a short rule over readable properties distinguishes its top examples from the others.
    5. *predicted*: the measured KL of its move agrees with equation 5.

    The guide "Auditing components" defines the statistic, null, threshold and correction of each check.

    Args:
        model: the model that was decomposed.
        decomposition: its components.
        pefs: PEFs of ``examples``.
        examples: n held-out examples, which were not decomposed.
        fit: coefficients of ``examples``.
        decomposed: the PEFs that were decomposed. With them, check 2 compares ``n_seeds`` further runs on them and one
            on ``pefs``, with the same number of components.
        runs: other runs to compare instead, by name: decompositions or fits over the same n examples, or coefficients.
        readable: readable properties of the examples: one or several texts per example (a report's display), images,
            or {name: values}. Labels and predictions are always included.
        table: existing result of `selectivity` for the components to audit.
        components: components to audit; by default all, or those of ``table``.
        n_top: number of top examples per component.
        n_seeds: number of further runs.
        thresholds: thresholds of all checks.
        class_names: class names for rules; by default those of the model.
        seed: seed of the audited decomposition; further runs use the next seeds.
        progress: True for a bar, False for none, a text stream for JSON lines.
        **options: arguments of `decompose` for the further runs; pass those of the audited decomposition.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: the arguments do not belong together, or the examples are those that were decomposed.
    """
    check_belong_together(model, decomposition, pefs, examples, fit)
    thresholds = as_instance("thresholds", thresholds, Thresholds)
    _check_held_out(decomposition, pefs, fit)
    _check_runs(decomposition, decomposed, runs, class_names)
    if table is None:
        own: dict[str, Any] = {"norm": KLBudget(NATS)} if decomposition.kind is FisherKind.LOW_RANK else {}
        nulls = Nulls(n_random_directions=0)
        table = selectivity(
            model, decomposition, pefs, examples, fit=fit, components=components, n_top=n_top, nulls=nulls, seed=seed,
            progress=progress, **own,
        )  # fmt: skip
    elif not isinstance(table, Selectivity):
        raise TypeError(f"table is of type {type(table).__name__}; expected what selectivity returns")
    chosen = table.components
    if components is not None and not np.array_equal(choose_components(components, decomposition.n_components), chosen):
        raise ValueError(f"table has components {chosen.tolist()}; pass it without components, or with the same ones")
    if chosen.max() >= decomposition.n_components or table.evaluated.max() >= pefs.n_examples:
        raise ValueError("table has more components or examples than there are; measure it on this decomposition")
    usable = np.setdiff1d(np.arange(pefs.n_examples), table.left_out)
    W = np.asarray(fit.coefficients)
    coefficients = {str(name): _coefficients(run, str(name), len(W)) for name, run in (runs or {}).items()}
    if runs is None and decomposed is not None:
        coefficients = _further_runs(decomposition, decomposed, pefs, n_seeds, seed, progress, options)
    names = class_names if class_names is not None else model.label_names
    rules = Rules.of(pefs.n_examples, readable, np.asarray(pefs.logits), pefs.labels, names)
    top = np.zeros((len(chosen), pefs.n_examples), bool)
    np.put_along_axis(top, table.top, True, axis=1)
    eye = table.components[:, None] == table.components
    if decomposition.kind is FisherKind.LOW_RANK:
        last = checks.predicted(table.kl, table.predicted_kl, top[:, table.evaluated], thresholds, seed)
    else:
        why = "diagonal Fishers lack what parameters do together, so that they predict less than is measured"
        last = Check.without("predicted", len(chosen), why)
    again = {name: run[usable] for name, run in coefficients.items()}
    return Audit(
        chosen,
        (
            checks.selective(table.kl_ratio, np.where(eye, np.nan, table.null_kl_ratios), thresholds),
            checks.found_again(W[usable], again, chosen, thresholds, seed),
            checks.held_out(np.asarray(decomposition.coefficients)[:, chosen], W[usable][:, chosen], thresholds, seed),
            checks.readable(Rules(rules.names, rules.has[usable]), top[:, usable], thresholds, seed),
            last,
        ),
    )


def _further_runs(
    decomposition: Decomposition,
    decomposed: Pefs,
    pefs: Pefs,
    n_seeds: int,
    seed: int,
    progress: Progress,
    options: dict[str, Any],
) -> dict[str, Float[np.ndarray, "n r"]]:
    """Compute coefficients of the held-out examples from runs with other seeds and from a run on these examples."""
    r, n_seeds = decomposition.n_components, check_integer("n_seeds", n_seeds, 1)
    found = {}
    with progress_bar(progress, "audit: further runs", n_seeds + 1, "runs") as advance:
        for number in range(seed + 1, seed + 1 + n_seeds):
            run = decompose(decomposed, r, seed=number, progress=False, **options)
            found[f"seed {number}"] = np.asarray(fit_coefficients(run, pefs).coefficients)
            advance(1)
        half = decompose(pefs, r, seed=seed, progress=False, **options)
        found["held-out examples alone"] = np.asarray(half.coefficients)
        advance(1)
    return found


def _check_held_out(decomposition: Decomposition, pefs: Pefs, fit: Fitted) -> None:
    same = pefs.schema.examples and pefs.schema.examples == decomposition.schema.examples
    if fit is decomposition or same:
        raise ValueError(
            "these are the examples that were decomposed; an audit needs others: hold some out, pass their PEFs and "
            "fit=fit_coefficients(decomposition, heldout)"
        )


def _check_runs(decomposition: Decomposition, decomposed: Any, runs: Any, class_names: Any) -> None:
    """Raise if further runs or class names are of the wrong type, before any long work."""
    if runs is not None and not isinstance(runs, Mapping):
        raise TypeError(f"runs is a {type(runs).__name__}; pass {{name: a decomposition, a fit or coefficients}}")
    if decomposed is not None:
        if not isinstance(decomposed, Pefs):
            raise TypeError(f"decomposed is a {type(decomposed).__name__}; pass the PEFs that were decomposed")
        own, given = decomposition.schema.identity, decomposed.schema.identity
        check_same("the decomposition", own, "decomposed=, these PEFs,", given)
    c = decomposition.schema.n_classes
    if class_names is not None and (isinstance(class_names, str) or np.shape(class_names) != (c,)):
        raise ValueError(f"class_names={class_names!r}; expected a name for each of the model's {c} classes")


def _coefficients(run: Fitted | np.ndarray, name: str, n: int) -> Float[np.ndarray, "n r"]:
    given = np.asarray(getattr(run, "coefficients", run))
    if given.dtype.kind not in "biuf":
        raise TypeError(f"runs[{name!r}] is a {type(run).__name__}; pass a decomposition, a fit or coefficients (n, r)")
    array = given.astype(np.float64)
    if array.ndim != 2 or len(array) != n:
        raise ValueError(
            f"runs[{name!r}] has coefficients of shape {array.shape}; expected ({n}, r), of these examples"
        )
    return array


def _cell(check: Check, place: int) -> str:
    if check.not_applicable:
        return "–"
    mark = "" if check.passed[place] else " ✗"
    return f"{check.statistic[place]:.2f}{mark}"
