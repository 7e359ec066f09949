"""Selectivity: whether moves along components change the predictions of their own examples only (section 3.1.2)."""

import dataclasses
import logging
import warnings
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from npeff_jax._checks import as_instance, check_integer
from npeff_jax._examples import choose_examples, take_examples
from npeff_jax._progress import Progress, progress_bar
from npeff_jax._types import Components, Examples, PyTree
from npeff_jax.evaluation._belonging import check_belong_together
from npeff_jax.evaluation._nulls import SIGNS, Nulls, random_moves
from npeff_jax.evaluation._prediction import predict, rank_agreement
from npeff_jax.evaluation._ranking import top_examples
from npeff_jax.evaluation._selectivity_table import Selectivity
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Categorical, Model
from npeff_jax.pefs import FisherKind, Pefs
from npeff_jax.perturbation import (
    DiagonalEdit,
    DirectionEdit,
    Edit,
    NoEditError,
    Passes,
    Subject,
    check_direction,
    choose_components,
    iterate_perturbed_kl,
    loss_sign,
    no_move,
    own_perturbed_kl,
)

_LOG = logging.getLogger(__name__)

N_TOP = 128
"""Number of top examples per component in the paper."""

_DELTA_BYTES = 2**27
"""Size in bytes of a block of moves, whose predictions share one pass over the pseudo-Fisher vectors."""

FAR_ABOVE = 10.0
"""Ratio of measured to predicted KL above which a move is not a second-order effect. On digits at norm 0.1 the median
over components is between 0.5 and 2; for examples that the components explain poorly it is up to a few times larger."""


class NotLocalWarning(UserWarning):
    """Moves are too long for equations 2 and 5 to hold."""


@runtime_checkable
class Fitted(Protocol):
    """Coefficients of examples: a `CoefficientFit`, or the `Decomposition` for the decomposed examples."""

    @property
    def coefficients(self) -> np.ndarray: ...


def selectivity(
    model: Model,
    decomposition: Decomposition,
    pefs: Pefs,
    examples: Examples,
    *,
    fit: Fitted,
    edits: Edit | None = None,
    n_top: int | None = None,
    components: Components | Bool[np.ndarray, "r"] | None = None,
    nulls: Nulls = Nulls(),  # noqa: B008 (frozen)
    seed: int = 0,
    passes: Passes = Passes(),  # noqa: B008 (frozen)
    progress: Progress = True,
    **edit: Any,
) -> Selectivity:
    """Perturb the model along every component with both signs, and compare KL on its top examples with random others.

    The result holds the divergences of all components and signs on the evaluated examples. It takes
    ``2 (c + n_random_directions)`` passes over at most ``n_random_examples + c · n_top`` examples. To reduce the cost,
    choose ``components``, or ``Nulls(n_other_components=q)``, which takes ``2 c`` passes over
    ``n_random_examples + (q + 1) n_top`` examples. Failed examples (skipped PEFs, non-finite logits) are left out, and
    listed in `Selectivity.left_out`.

    Args:
        model: the model that was decomposed. It is not changed.
        decomposition: its components.
        pefs: PEFs of ``examples``; their norms are a confounder, reported beside the KL ratios.
        examples: n examples, preferably not among the decomposed ones.
        fit: coefficients of ``examples``.
        edits: how a component moves the parameters. By default `DirectionEdit` for low-rank components (a step of norm
            0.1 along the direction after rejection) and `DiagonalEdit` for diagonal ones (a search for a given KL).
        n_top: number of top examples per component; by default 128 as in the paper, or a quarter of the examples if
            there are too few.
        components: components to perturb, indices or a Boolean mask; by default all. The null uses only these.
        nulls: numbers of random examples, random directions and other components.
        seed: seed of the random examples and directions.
        passes: batch size, devices and precision of the forward passes.
        progress: True for a bar, False for none, a text stream for JSON lines.
        **edit: settings of the default edit, instead of ``edits``, such as ``norm=0.3``, ``norm=KLBudget(0.05)`` or
            ``reject_below=None``.

    Raises:
        TypeError: an argument of the wrong type, or an unknown setting of the edit.
        ValueError: the arguments do not belong together, every random example is a top example, or no component can be
            moved.

    Warns:
        NotLocalWarning: for more than half of the components, the measured KL is far above the prediction of eq. 5.

    Examples:
        >>> table = selectivity(model, decomposition, pefs, examples, fit=fit, n_top=3, progress=False)
        >>> table.kl_ratio.shape, table.null_kl_ratio.shape
        ((3,), (3,))
    """
    examples = take_examples(examples)
    check_belong_together(model, decomposition, pefs, examples, fit)
    chosen = choose_components(components, decomposition.n_components)
    edits = _edit_of(decomposition, edits, edit)
    nulls, passes = as_instance("nulls", nulls, Nulls), as_instance("passes", passes, Passes)
    known = _usable(pefs, fit)
    n_top = _number_of_top_examples(n_top, known.size)

    rng = np.random.default_rng(check_integer("seed", seed, 0))
    coefficients = np.asarray(fit.coefficients)[known]
    top = np.stack([known[top_examples(coefficients, int(j), n_top)] for j in chosen])
    drawn = np.sort(rng.choice(known, min(nulls.n_random_examples, known.size), replace=False))
    evaluated = np.union1d(top, drawn)
    is_top = np.stack([np.isin(evaluated, row) for row in top])
    is_random = np.isin(evaluated, drawn)
    if not (is_random & ~is_top).any(axis=1).all():
        raise ValueError(f"all {len(drawn)} random examples are top examples of a component; raise n_random_examples")

    tops = dict(zip(chosen.tolist(), top, strict=True))
    subject = Subject(model, decomposition, examples, pefs.labels, tops, drawn, passes)
    edits.check(subject)
    moves = _Moves(subject, edits, chosen, np.asarray(fit.coefficients)[evaluated], np.asarray(pefs.norms)[evaluated])
    subset = choose_examples(examples, evaluated)
    tried = nulls.others(len(chosen), rng)
    measured = (tried.T.astype(np.float32) @ is_top > 0) | is_random  # (c, e), where each move is measured
    with progress_bar(progress, "perturb", 2 * (len(chosen) + nulls.n_random_directions), "moves") as advance:

        def divergences(moved: Iterator[PyTree]) -> Float[np.ndarray, "d 2 e both"]:
            found = []
            for both in iterate_perturbed_kl(model, subset, moved, [1.0], passes, finite=False, errors=True):
                found.append(both[0])
                advance(1)
            return np.reshape(found, (-1, 2, len(evaluated), 2))

        def divergences_where_tried(moved: Iterator[PyTree]) -> Float[np.ndarray, "c 2 e both"]:
            rows = [np.flatnonzero(row) for row in np.repeat(measured, 2, axis=0)]
            found = np.stack([np.full((len(rows), len(evaluated)), np.nan), np.zeros((len(rows), len(evaluated)))], -1)
            for i, both in enumerate(own_perturbed_kl(model, subset, moved, rows, passes)):
                found[i, rows[i]] = 0.0 if moves.failures[i] else both
                advance(1)
            return found.reshape(-1, 2, len(evaluated), 2)

        both = divergences(iter(moves)) if measured.all() else divergences_where_tried(iter(moves))
        kl, kl_error = moves.without_failures(both[..., 0].copy(), measured), both[..., 1]
        along_random = divergences(random_moves(model, nulls.n_random_directions, moves.typical_norm, seed))[..., 0]
    moves.say_failures()

    ratios = np.where(tried.T[:, None], _ratios(np.where(measured[:, None], kl, 0.0), is_top, is_random), np.nan)
    random_ratios = _ratios(along_random, is_top, is_random)
    own = np.einsum("jsj->js", ratios)
    best = (np.arange(len(chosen)), np.argmax(np.nan_to_num(own), axis=1))
    prediction = moves.predicted.reshape(kl.shape)
    table = Selectivity(
        components=chosen,
        top=top,
        evaluated=evaluated,
        is_random=is_random,
        kl=kl,
        kl_error=kl_error,
        predicted_kl=prediction,
        norms=np.reshape(moves.norms, (-1, 2)),
        kl_ratios=own,
        loss_sign=np.array(moves.loss_signs),
        pef_norm_ratio=_ratios(moves.alpha[None, None], is_top, is_random)[0, 0],
        null_kl_ratios=np.fmax(ratios[:, 0], ratios[:, 1]).T,
        random_kl_ratios=np.fmax(random_ratios[:, 0], random_ratios[:, 1]).T,
        prediction_correlation=_rank_agreements(prediction[best], kl[best], measured),
        coefficient_correlation=_rank_agreements(moves.coefficients[:, chosen].T, kl[best], measured),
        ceiling=known.size / n_top,
        left_out=np.setdiff1d(np.arange(pefs.n_examples), known),
        failures=np.array(moves.failures).reshape(-1, 2),
        tried=tried,
    )
    if decomposition.kind is FisherKind.LOW_RANK:  # diagonal PEFs lack cross terms, so they predict less
        _warn_unless_local(table)
    return table


class _Moves:
    """Iterator over the moves of c components with both signs, which records norms, failures and predictions."""

    def __init__(
        self,
        subject: Subject,
        edits: Edit,
        chosen: Int[np.ndarray, "c"],
        coefficients: Float[np.ndarray, "e r"],
        alpha: Float[np.ndarray, "e"],
    ) -> None:
        self.subject, self.edits, self.chosen = subject, edits, chosen
        self.coefficients, self.alpha = coefficients, alpha
        self._predicted: list[np.ndarray] = []
        self._deltas: list[np.ndarray] = []  # moves whose prediction is not computed yet
        self.norms: list[float] = []
        self.loss_signs: list[int] = []
        self.failures: list[str] = []

    def __iter__(self) -> Iterator[PyTree]:
        model = self.subject.model
        for component in self.chosen.tolist():
            for sign in SIGNS:
                try:
                    move, failure = self.edits.move(self.subject, component, sign), ""
                    check_direction(model, move, f"the move of component {component}")
                except NoEditError as error:
                    move, failure = no_move(model), str(error)
                self.failures.append(failure)
                delta = np.asarray(model.space.ravel(move))
                self.norms.append(float(np.linalg.norm(delta)))
                self._deltas.append(delta[self.subject.decomposition.parameter_indices])
                if sum(waiting.nbytes for waiting in self._deltas) > _DELTA_BYTES:
                    self._predict()
                if sign > 0:
                    self.loss_signs.append(0 if failure else self._loss_sign(component, move))
                yield move

    @property
    def predicted(self) -> Float[np.ndarray, "d e"]:
        """Predicted KL (eq. 5) of the moves made so far."""
        self._predict()
        return np.concatenate(self._predicted)

    def _predict(self) -> None:
        if self._deltas:
            self._predicted.append(predict(self.subject, self.coefficients, self.alpha, np.stack(self._deltas)))
            self._deltas = []

    def without_failures(
        self, kl: Float[np.ndarray, "c 2 e"], measured: Bool[np.ndarray, "c e"]
    ) -> Float[np.ndarray, "c 2 e"]:
        """Return ``kl`` with zeros for moves that give a non-finite prediction, which are recorded as failures."""
        for i, row in enumerate(kl.reshape(-1, kl.shape[-1])):
            if not np.isfinite(row[measured[i // 2]]).all():
                row[measured[i // 2]] = 0.0
                self.failures[i] = (
                    f"component {self.chosen[i // 2]}: predictions are not finite after a move of norm "
                    f"{self.norms[i]:.2g}; use a smaller norm, or KLBudget"
                )
        return kl

    def say_failures(self) -> None:
        failed = [failure for failure in self.failures if failure]
        if failed and len(failed) == len(self.failures):
            raise ValueError(f"no component can be moved; {failed[0]}")
        for failure in dict.fromkeys(failed):
            _LOG.warning("left out: %s", failure)

    @property
    def typical_norm(self) -> float:
        known = [norm for norm in self.norms if norm > 0]
        return float(np.median(known)) if known else 1.0

    def _loss_sign(self, component: int, move: PyTree) -> int:
        if not isinstance(self.subject.model.output, Categorical):
            return 0
        return int(loss_sign(self.subject.model, move, *self.subject.top_examples(component)))


def _edit_of(decomposition: Decomposition, edits: Edit | None, settings: dict[str, Any]) -> Edit:
    """Return the given edit, or the default one for the kind of decomposition, with settings."""
    if edits is not None:
        edits = as_instance("edits", edits, Edit)
        if settings:
            raise TypeError(
                f"got {', '.join(settings)} together with edits; set it in the edit: {type(edits).__name__}(…)"
            )
        return edits
    default = DirectionEdit if decomposition.kind is FisherKind.LOW_RANK else DiagonalEdit
    if default is DiagonalEdit and settings.get("reject_below", 0) is None:  # diagonal edits have no rejection
        settings = {name: value for name, value in settings.items() if name != "reject_below"}
    fields = [field.name for field in dataclasses.fields(default)]
    unknown = [name for name in settings if name not in fields]
    if unknown:
        raise TypeError(
            f"selectivity has no setting {unknown[0]!r} for {decomposition.kind.value.replace('_', '-')} components; "
            f"beside its own arguments it takes those of {default.__name__}: {', '.join(fields)}"
        )
    return default(**settings)


def _usable(pefs: Pefs, fit: Fitted) -> Int[np.ndarray, "k"]:
    """Return the positions of examples whose PEF norms, logits and coefficients are finite."""
    finite = np.isfinite(pefs.norms)
    for array in (pefs.logits, fit.coefficients):
        finite = finite & np.isfinite(np.asarray(array, np.float32)).all(axis=1)
    missing = int((~finite).sum())
    if missing == finite.size:
        raise ValueError(f"all {missing} examples failed: their norms, logits or coefficients are not finite")
    if missing:
        _LOG.warning("left out %d examples of %d: PEFs, logits or coefficients are not finite", missing, len(finite))
    return np.flatnonzero(finite)


def _number_of_top_examples(n_top: int | None, n: int) -> int:
    if n_top is not None:
        return check_integer("n_top", n_top, 1, n - 1)
    if n < 2:
        raise ValueError(f"{n} example is left; expected two or more, to compare top examples with others")
    if n > N_TOP:
        return N_TOP
    _LOG.warning("n_top=%d: a quarter of the %d examples, as there are no more than %d", max(1, n // 4), n, N_TOP)
    return max(1, n // 4)


def _ratios(
    kl: Float[np.ndarray, "d s e"], is_top: Bool[np.ndarray, "c e"], is_random: Bool[np.ndarray, "e"]
) -> Float[np.ndarray, "d s c"]:
    """Return the mean KL over each component's top examples divided by that over random others; NaN for 0/0."""
    others = is_random & ~is_top
    values = np.asarray(kl, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (values @ is_top.T / is_top.sum(axis=1)) / (values @ others.T / others.sum(axis=1))


def _rank_agreements(
    first: Float[np.ndarray, "c e"], second: Float[np.ndarray, "c e"], where: Bool[np.ndarray, "c e"]
) -> Float[np.ndarray, "c"]:
    return np.array([rank_agreement(a[own], b[own]) for a, b, own in zip(first, second, where, strict=True)])


def _warn_unless_local(table: Selectivity) -> None:
    excess = table.kl_excess[np.isfinite(table.kl_excess)]
    far = int((excess > FAR_ABOVE).sum())
    if far > len(excess) / 2:
        warnings.warn(
            f"the moves are not local: for {far} of {len(excess)} components the KL measured on the top examples is "
            f"more than {FAR_ABOVE:g} times what eq. 5 predicts (median {np.median(excess):.2g} times, at norms around "
            f"{np.median(table.norms):.2g}); use a smaller norm, or norm=KLBudget(0.05)",
            NotLocalWarning,
            stacklevel=3,
        )
