"""Do components' perturbations move the predictions of their own examples, and only these? (section 3.1.2)"""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from npeff_jax._checks import check_in_range, count_examples, is_source, slice_examples
from npeff_jax._progress import Progress, progress_bar
from npeff_jax._types import Examples, PyTree
from npeff_jax.evaluation._prediction import predicted_kl
from npeff_jax.evaluation._ranking import rank_correlation, top_examples
from npeff_jax.evaluation._selectivity_table import Selectivity
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.pefs import Pefs
from npeff_jax.perturbation import (
    PAPER_THRESHOLD,
    check_component,
    check_decomposition_of,
    component_directions,
    iterate_perturbed_kl,
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
    components: Sequence[int] | None = None,
    n_directions: int = 8,
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
        norm: L2 norm of the perturbations.
        reject_below: threshold of the orthogonal rejection (`component_direction`); None for plain directions.
        components: which components; all by default. The null is taken among them.
        n_directions: random directions of equal norm, for the second null.
        seed: of the random examples and directions.
        batch_size: examples of one forward pass.
        mesh: devices to share the examples; JAX's default device if None.
        precision: of the model's matrix products.
        progress: a bar, nothing, or JSON lines into a stream.

    Raises:
        ValueError: model, decomposition, PEFs, examples and fit do not belong together; no random example is left
            beside the top ones; a direction vanishes.

    Example:
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
    directions = component_directions(model, decomposition, chosen.tolist(), reject_below)

    rng = np.random.default_rng(seed)
    top = np.stack([top_examples(fit.coefficients, int(j), n_top) for j in chosen])
    drawn = rng.choice(n, min(n_random, n), replace=False)
    evaluated = np.union1d(top, drawn)
    is_top = np.stack([np.isin(evaluated, row) for row in top])
    is_random = np.isin(evaluated, drawn)
    if not (is_random & ~is_top).any(axis=1).all():
        raise ValueError(f"a component's {n_top} top examples are all {len(drawn)} random ones; raise n_random")

    coefficients, alpha = fit.coefficients[evaluated], np.asarray(pefs.norms)[evaluated]
    predicted: list[np.ndarray] = []

    def predicting(directions: Iterator[PyTree]) -> Iterator[PyTree]:
        for direction in directions:
            predicted.append(predicted_kl(model, decomposition, coefficients, alpha, direction, norm))
            yield direction

    subset = _Chosen(examples, evaluated) if is_source(examples) else slice_examples(examples, evaluated)
    moved, along_random = [], []
    with progress_bar(progress, "perturb", len(chosen) + n_directions, "directions") as advance:
        settings = ([norm, -norm], batch_size, mesh, precision)
        for kl in iterate_perturbed_kl(model, subset, predicting(directions), *settings):
            moved.append(kl)
            advance(1)
        for kl in iterate_perturbed_kl(model, subset, _random_directions(model, n_directions, seed), *settings):
            along_random.append(kl)
            advance(1)

    kl = np.stack(moved)
    ratios = _ratios(kl, is_top, is_random)
    own = np.einsum("jsj->js", ratios)
    best = np.argmax(np.nan_to_num(own), axis=1)
    measured = kl[np.arange(len(chosen)), best]
    return Selectivity(
        components=chosen,
        top=top,
        evaluated=evaluated,
        random=is_random,
        kl=kl,
        predicted_kl=np.stack(predicted),
        norms=np.full(len(chosen), norm),
        kl_ratios=own,
        pef_norm_ratio=_ratios(alpha[None, None], is_top, is_random)[0, 0],
        null_kl_ratios=np.fmax(ratios[:, 0], ratios[:, 1]).T,
        random_kl_ratios=_random_ratios(along_random, is_top, is_random),
        prediction_correlation=np.array([rank_correlation(p, k) for p, k in zip(predicted, measured, strict=True)]),
        coefficient_correlation=np.array(
            [rank_correlation(coefficients[:, j], k) for j, k in zip(chosen, measured, strict=True)]
        ),
        ceiling=n / n_top,
    )


class _Chosen:
    """Some examples of a source, read when they are needed."""

    def __init__(self, source: Examples, rows: np.ndarray) -> None:
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice) -> Examples:
        return slice_examples(self._source, self._rows[rows])


def _random_directions(model: Model, count: int, seed: int) -> Iterator[PyTree]:
    """Unit vectors, uniform on the sphere of the explained parameters."""
    for i in range(count):
        vector = jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), (model.space.size,))
        yield model.space.unravel(vector / jnp.linalg.norm(vector))


def _ratios(
    kl: Float[np.ndarray, "d s e"], is_top: Bool[np.ndarray, "c e"], is_random: Bool[np.ndarray, "e"]
) -> Float[np.ndarray, "d s c"]:
    """Mean over each component's top examples, over the mean of the random others; NaN for 0/0."""
    others = is_random & ~is_top
    values = np.asarray(kl, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (values @ is_top.T / is_top.sum(axis=1)) / (values @ others.T / others.sum(axis=1))


def _random_ratios(
    along: list[np.ndarray], is_top: Bool[np.ndarray, "c e"], is_random: Bool[np.ndarray, "e"]
) -> Float[np.ndarray, "c d"]:
    if not along:
        return np.zeros((len(is_top), 0))
    ratios = _ratios(np.stack(along), is_top, is_random)
    return np.fmax(ratios[:, 0], ratios[:, 1]).T


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
