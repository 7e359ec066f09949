"""Do components' perturbations move the predictions of their own examples, and only these? (section 3.1.2)"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from npeff_jax._checks import check_in_range
from npeff_jax._examples import choose_examples, count_examples, slice_examples
from npeff_jax._progress import Progress, progress_bar
from npeff_jax._types import Components, Examples, PyTree
from npeff_jax.evaluation._edits import TopExamples, diagonal_edits, low_rank_edits, random_edits
from npeff_jax.evaluation._prediction import predicted_kl
from npeff_jax.evaluation._ranking import rank_correlation, top_examples
from npeff_jax.evaluation._selectivity_table import Selectivity
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Categorical, Model
from npeff_jax.pefs import FisherKind, Pefs
from npeff_jax.perturbation import (
    PAPER_THRESHOLD,
    DiagonalPerturbation,
    check_component,
    check_decomposition_of,
    dataset_fisher,
    iterate_perturbed_kl,
    loss_sign,
)


@runtime_checkable
class Fitted(Protocol):
    """Coefficients of some examples: a `Fit`, or the `Decomposition` itself for the examples it was found in."""

    @property
    def coefficients(self) -> np.ndarray: ...


def selectivity(
    model: Model,
    decomposition: Decomposition,
    pefs: Pefs,
    examples: Examples,
    *,
    fit: Fitted,
    n_top: int = 128,
    n_random: int = 10_000,
    norm: float = 0.1,
    reject_below: float | None = PAPER_THRESHOLD,
    components: Components | None = None,
    n_directions: int = 8,
    diagonal: DiagonalPerturbation = DiagonalPerturbation(),  # noqa: B008 (frozen)
    fisher: PyTree | None = None,
    seed: int = 0,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    precision: str = "highest",
    progress: Progress = True,
) -> Selectivity:
    """Perturb every component with both signs and compare its top examples with random other ones.

    Everything comes from one array of divergences (components, signs, evaluated examples). Its cost is
    ``2 (c + n_directions)`` passes over at most ``n_random + c · n_top`` examples; ``components`` makes it smaller.

    Args:
        model: the model that was decomposed. It is not changed.
        decomposition: its components.
        pefs: of the examples below; their norms are the confounder that is printed beside the ratios.
        examples: n examples, best ones that the decomposition was not found in.
        fit: their coefficients.
        n_top: examples that stand for a component, 128 in the paper.
        n_random: random examples to compare them with, or all there are if fewer.
        norm: L2 norm of a low-rank component's perturbations. Diagonal ones are searched to a mean KL instead.
        reject_below: threshold of the orthogonal rejection (`component_direction`); None for plain directions. Low-rank
            components only.
        components: which components; all by default. The null is taken among them.
        n_directions: random directions of equal norm (diagonal components: of their median norm), the second null.
        diagonal: how diagonal components perturb.
        fisher: the data set's diagonal Fisher that they are weighed against (`dataset_fisher`); of the random examples
            if None.
        seed: of the random examples and directions.
        batch_size: examples of one forward pass.
        mesh: devices to share the examples; JAX's default device if None.
        precision: of the model's matrix products.
        progress: a bar, nothing, or JSON lines into a stream.

    Raises:
        ValueError: model, decomposition, PEFs, examples and fit do not belong together; no random example is left
            beside the top ones; a direction vanishes.

    Examples:
        >>> table = selectivity(model, decomposition, heldout, examples, fit=fit)  # doctest: +SKIP
        >>> print(table)  # doctest: +SKIP
    """
    _check_belong_together(model, decomposition, pefs, examples, fit)
    n = pefs.n_examples
    check_in_range("n_top", n_top, 1, n - 1)
    check_in_range("n_random", n_random, 1, np.inf)
    chosen = np.arange(decomposition.n_components) if components is None else np.asarray(components, np.int64)
    for component in chosen:
        check_component(decomposition, int(component))

    rng = np.random.default_rng(seed)
    top = np.stack([top_examples(fit.coefficients, int(j), n_top) for j in chosen])
    drawn = np.sort(rng.choice(n, min(n_random, n), replace=False))
    evaluated = np.union1d(top, drawn)
    is_top = np.stack([np.isin(evaluated, row) for row in top])
    is_random = np.isin(evaluated, drawn)
    if not (is_random & ~is_top).any(axis=1).all():
        raise ValueError(f"all {len(drawn)} random examples are top ones of some component; raise n_random")

    if decomposition.kind is FisherKind.LOW_RANK:
        edits = low_rank_edits(model, decomposition, chosen, norm, reject_below)
    else:
        f = dataset_fisher(model, choose_examples(examples, drawn), mesh=mesh) if fisher is None else fisher
        edits = diagonal_edits(model, decomposition, _top_of(chosen, top, examples, pefs), f, diagonal)
    coefficients, alpha = fit.coefficients[evaluated], np.asarray(pefs.norms)[evaluated]
    predicted, norms, loss_signs = [], [], []

    def recorded(edits: Iterator[PyTree]) -> Iterator[PyTree]:
        for position, edit in enumerate(edits):
            if position % 2 == 0:  # the component's sign +
                loss_signs.append(_loss_sign(model, edit, examples, top[position // 2], pefs.labels))
            predicted.append(predicted_kl(model, decomposition, coefficients, alpha, edit))
            norms.append(float(jnp.linalg.norm(model.space.ravel(edit))))
            yield edit

    subset = choose_examples(examples, evaluated)
    with progress_bar(progress, "perturb", 2 * (len(chosen) + n_directions), "edits") as advance:

        def divergences(edits: Iterator[PyTree]) -> Float[np.ndarray, "d 2 e"]:
            found = []
            for kl in iterate_perturbed_kl(model, subset, edits, [1.0], batch_size, mesh, precision):
                found.append(kl[0])
                advance(1)
            return np.reshape(found, (-1, 2, len(evaluated)))

        kl = divergences(recorded(edits))
        typical = float(np.median([size for size in norms if size > 0] or [norm]))
        along_random = divergences(random_edits(model, n_directions, typical, seed))

    ratios = _ratios(kl, is_top, is_random)
    random_ratios = _ratios(along_random, is_top, is_random)
    own = np.einsum("jsj->js", ratios)
    best = (np.arange(len(chosen)), np.argmax(np.nan_to_num(own), axis=1))
    prediction = np.reshape(predicted, kl.shape)
    return Selectivity(
        components=chosen,
        top=top,
        evaluated=evaluated,
        random=is_random,
        kl=kl,
        predicted_kl=prediction,
        norms=np.reshape(norms, (-1, 2)),
        kl_ratios=own,
        loss_sign=np.array(loss_signs),
        pef_norm_ratio=_ratios(alpha[None, None], is_top, is_random)[0, 0],
        null_kl_ratios=np.fmax(ratios[:, 0], ratios[:, 1]).T,
        random_kl_ratios=np.fmax(random_ratios[:, 0], random_ratios[:, 1]).T,
        prediction_correlation=_rank_correlations(prediction[best], kl[best]),
        coefficient_correlation=_rank_correlations(coefficients[:, chosen].T, kl[best]),
        ceiling=n / n_top,
    )


def _top_of(chosen: Int[np.ndarray, "c"], top: Int[np.ndarray, "c k"], examples: Examples, pefs: Pefs) -> TopExamples:
    labels = None if pefs.labels is None else tuple(pefs.labels[row] for row in top)
    return TopExamples(chosen, tuple(slice_examples(examples, row) for row in top), labels)


def _loss_sign(
    model: Model,
    edit: PyTree,
    examples: Examples,
    top: Int[np.ndarray, "k"],
    labels: Int[np.ndarray, "n"] | None,
) -> int:
    if not isinstance(model.output, Categorical):
        return 0
    return int(loss_sign(model, edit, slice_examples(examples, top), None if labels is None else labels[top]))


def _ratios(
    kl: Float[np.ndarray, "d s e"], is_top: Bool[np.ndarray, "c e"], is_random: Bool[np.ndarray, "e"]
) -> Float[np.ndarray, "d s c"]:
    """Mean over each component's top examples, over the mean of the random others; NaN for 0/0."""
    others = is_random & ~is_top
    values = np.asarray(kl, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (values @ is_top.T / is_top.sum(axis=1)) / (values @ others.T / others.sum(axis=1))


def _rank_correlations(first: Float[np.ndarray, "c e"], second: Float[np.ndarray, "c e"]) -> Float[np.ndarray, "c"]:
    return np.array([rank_correlation(a, b) for a, b in zip(first, second, strict=True)])


def _check_belong_together(
    model: Model, decomposition: Decomposition, pefs: Pefs, examples: Examples, fit: Fitted
) -> None:
    check_decomposition_of(model, decomposition)
    if pefs.schema.model != model.fingerprint:
        raise ValueError(
            f"the PEFs are of a model with fingerprint {pefs.schema.model}, this one has {model.fingerprint}; compute "
            "them for this model"
        )
    n, n_pefs, n_fit = count_examples(examples), pefs.n_examples, len(fit.coefficients)
    if not n == n_pefs == n_fit:
        raise ValueError(
            f"{n} examples, PEFs of {n_pefs} and coefficients of {n_fit}; pass the same examples in all three"
        )
    if fit.coefficients.shape[1] != decomposition.n_components:
        raise ValueError(
            f"the coefficients have {fit.coefficients.shape[1]} components, the decomposition "
            f"{decomposition.n_components}; fit them to this decomposition"
        )
