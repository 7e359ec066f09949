"""Figures for papers and notebooks. Each function returns a matplotlib figure and changes no global state."""

import functools
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from npeff_jax._extras import needs
from npeff_jax._types import Components
from npeff_jax.evaluation import Selectivity, top_examples
from npeff_jax.factorization import Decomposition, History
from npeff_jax.pefs import Pefs
from npeff_jax.report._anatomy import anatomy
from npeff_jax.report._display import Images
from npeff_jax.report._places import places_of

Figure = Any
"""A ``matplotlib.figure.Figure``."""

KIND_COLORS = {
    "embedding": "#8e6bbf",
    "norm": "#b08968",
    "attention": "#2f6fd0",
    "feed-forward": "#d9822b",
    "head": "#c2405b",
    "convolution": "#1f8f83",
    "dense": "#6a8f2a",
    "other": "#7b8494",
}
"""Colour of each kind of parameters, the same as in the report."""


def _axes(width: float = 5.0, height: float = 3.2, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Any]]:
    figure = _figure_class()(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


@functools.cache
def _figure_class() -> Any:
    """Return a subclass of Figure that notebooks display. It is not registered in pyplot, so needs no closing."""
    with needs("a figure"):
        from matplotlib.figure import Figure as PlainFigure

    class ShownFigure(PlainFigure):
        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png", dpi=120)
            return picture.getvalue()

    return ShownFigure


def loss_figure(histories: History | Mapping[str, History], against_seconds: bool = False) -> Figure:
    """Plot the loss, relative to the PEFs' squared norm, over iterations (or seconds) for one or several runs."""
    figure, (axes,) = _axes()
    named = {"": histories} if isinstance(histories, History) else histories
    for style, (name, history) in zip(itertools.cycle(("-", "--", ":")), named.items()):  # dashes: curves may coincide
        axes.plot(history.seconds if against_seconds else history.step, history.loss, style, label=name or None)
    axes.set(xlabel="seconds" if against_seconds else "iteration", ylabel="loss / ‖F‖²", ylim=(0, None))
    if len(named) > 1:
        axes.legend(frameon=False)
    return figure


def coefficient_figure(coefficients: Float[np.ndarray, "n r"]) -> Figure:
    """Plot a histogram of the positive coefficients on a logarithmic axis."""
    positive = coefficients[coefficients > 0]
    figure, (axes,) = _axes()
    low = max(float(positive.min(initial=1.0)), 1e-8)
    high = max(float(positive.max(initial=low)), low * 1.01)
    # The outer edges are beyond the extremes by more than rounding, so that every value is counted.
    edges = np.geomspace(low * (1 - 1e-6), high * (1 + 1e-6), 40)
    axes.hist(np.maximum(positive, low), bins=edges, color="#6f86c9")
    axes.set(xscale="log", xlabel="coefficient", ylabel="pairs of example and component")
    axes.set_title(f"{np.mean(coefficients == 0):.0%} are zero", fontsize=9, loc="right")
    return figure


def fidelity_figure(pefs: Pefs) -> Figure:
    """Plot histograms of the kept fraction of the trace and of the relative Frobenius error of sparsified PEFs."""
    figure, axes = _axes(7.0, 2.8, 1, 2)
    for one, values, name in zip(axes, (pefs.kept_energy, pefs.fisher_error), ("kept energy", "Frobenius error")):
        one.hist(np.asarray(values), bins=40, range=(0, 1), color="#6f86c9")
        one.set(xlabel=name, ylabel="examples")
    return figure


def selectivity_figure(table: Selectivity) -> Figure:
    """Plot histograms of log₂ of the KL ratio, the PEF-norm ratio and the null ratios (figure 3 of the paper)."""
    figure, (axes,) = _axes(5.6, 3.4)
    ratios = {name: values[np.isfinite(values)] for name, values in table.log2_ratios().items()}
    everything = np.concatenate(list(ratios.values()))
    edges = np.linspace(everything.min(), everything.max() + 1e-6, 30)
    for color, (name, values) in zip(("#2f6fd0", "#b08968", "#7b8494", "#c4c8cf"), ratios.items()):
        axes.hist(values, bins=edges, histtype="stepfilled", alpha=0.45, color=color, label=name)
    axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="log₂ of the ratio (0: no difference)", ylabel="components")
    axes.legend(frameon=False)
    return figure


def prediction_figure(table: Selectivity) -> Figure:
    """Plot measured KL against KL predicted by eq. 5: one point per component, the mean over its top examples."""
    figure, (axes,) = _axes(3.6, 3.4)
    rows = [np.searchsorted(table.evaluated, top) for top in table.top]
    sign = [0 if s > 0 else 1 for s in table.sign]
    predicted = np.array([table.predicted_kl[c, where].mean() for c, where in enumerate(rows)])
    measured = np.array([table.kl[c, sign[c], where].mean() for c, where in enumerate(rows)])
    shown = (predicted > 0) & (measured > 0)
    axes.scatter(predicted[shown], measured[shown], s=14, color="#2f6fd0", alpha=0.8)
    if shown.any():
        ends = [min(predicted[shown].min(), measured[shown].min()), max(predicted[shown].max(), measured[shown].max())]
        axes.plot(ends, ends, color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="predicted KL (eq. 5)", ylabel="measured KL, nats")
    return figure


def similarity_figure(steps: Sequence[int], similarities: Float[np.ndarray, "steps r"]) -> Figure:
    """Plot the cosine similarity of components to the final ones over iterations: median, quartiles, extremes.

    Args:
        steps: iteration of each row of ``similarities``.
        similarities: |cos| of each component at each step to its final value, or to its match in another run.
    """
    figure, (axes,) = _axes()
    low, first, middle, third, high = np.quantile(similarities, [0, 0.25, 0.5, 0.75, 1], axis=1)
    axes.fill_between(steps, low, high, color="#2f6fd0", alpha=0.12, linewidth=0)
    axes.fill_between(steps, first, third, color="#2f6fd0", alpha=0.3, linewidth=0)
    axes.plot(steps, middle, color="#2f6fd0")
    axes.set(xlabel="iteration", ylabel="|cos| with the match", ylim=(0, 1.02))
    return figure


def split_figure(similarity: Float[np.ndarray, "a b"], threshold: float = 0.35) -> Figure:
    """Plot the similarities of two runs' components, ordered so that matches lie on the diagonal and splits in blocks.

    Args:
        similarity: |cos| of every component of run a with every one of run b.
        threshold: similarities below it are left white.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-similarity)
    best = np.argsort(-similarity[rows, columns], kind="stable")
    rest_a, rest_b = (np.setdiff1d(np.arange(size), used) for size, used in zip(similarity.shape, (rows, columns)))
    a, b = np.concatenate([rows[best], rest_a]), np.concatenate([columns[best], rest_b])
    shown = similarity[np.ix_(a, b)]
    figure, (axes,) = _axes(4.6, 4.0)
    drawn = axes.imshow(np.where(shown >= threshold, shown, np.nan), cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.set(xlabel="component of run b", ylabel="component of run a")
    figure.colorbar(drawn, ax=axes, label="|cos|")
    return figure


def collage_figure(
    images: Any,
    coefficients: Float[np.ndarray, "n r"],
    components: Components,
    k: int = 8,
    texts: Sequence[str] | None = None,
) -> Figure:
    """Draw the k top images of some components, one row per component, with their coefficients.

    Args:
        images: images of all n examples, as for `write_report`.
        coefficients: (n, r), coefficients of these examples.
        components: components to draw.
        k: images per component.
        texts: text beside each row, such as `Component.headline`.
    """
    images = images if isinstance(images, Images) else Images(np.asarray(images))
    lines = [line for text in texts or () for line in text.splitlines()]
    beside = 0.08 * max(map(len, lines), default=0)  # inches, at 9 points
    figure, axes = _axes(0.85 * k + 0.5 + beside, 1.05 * len(components), len(components), k)
    for place, component in enumerate(components):
        row = axes[place * k : (place + 1) * k]
        top = np.asarray(top_examples(coefficients, component, k))
        for one in row:
            one.set(xticks=[], yticks=[])
            one.spines[:].set(visible=True, color="#a39c8d")  # a frame separates white images from the page
        for one, i, picture in zip(row, top, images.to_bytes(top.tolist())):
            one.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            one.set_title(f"{coefficients[i, component]:.2f}", fontsize=7, pad=2)
        row[0].text(-0.15, 0.5, str(component), transform=row[0].transAxes, ha="right", va="center", fontsize=9)
        if texts is not None:
            row[-1].text(1.12, 0.5, texts[place], transform=row[-1].transAxes, ha="left", va="center", fontsize=9)
    return figure


def energy_figure(decomposition: Decomposition, components: Components | None = None) -> Figure:
    """Plot components' shares of energy by layer, stacked by kind of parameter.

    Args:
        decomposition: the decomposition.
        components: components to plot, one panel each; by default one panel with the mean over all.
    """
    places = places_of(decomposition.schema.layout)
    energy = anatomy(decomposition).energy
    panels = [places.table(energy.mean(0))] if components is None else [places.table(energy[j]) for j in components]
    names = ["mean over components"] if components is None else [f"component {j}" for j in components]
    figure, axes = _axes(
        1.6 + 2.6 * len(panels), 1.0 + 0.26 * len(places.layers) + 0.2 * len(places.kinds), 1, len(panels)
    )
    for one, name, table in zip(axes, names, panels):
        left: Float[np.ndarray, layers] = np.zeros(len(places.layers))
        for kind, share in zip(places.kinds, table.T):
            one.barh(places.layers, share, left=left, label=kind, color=KIND_COLORS[kind])
            left = left + share
        one.invert_yaxis()
        one.set_title(name, fontsize=9)
        one.set(xlabel="share of energy", xlim=(0, 1.05 * max(table.sum(1).max() for table in panels)))
        one.label_outer()
    figure.legend(*one.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def decay_figure(coefficients: Float[np.ndarray, "n r"], heldout: Float[np.ndarray, "k r"]) -> Figure:
    """Plot the median decay of coefficients by rank, decomposed against held out, relative to the largest."""
    figure, (axes,) = _axes()
    for name, values, style in (("decomposed", coefficients, "--"), ("held out", heldout, "-")):
        ordered = -np.sort(-values, axis=0)
        at: Int[np.ndarray, k] = np.arange(1, len(values) + 1)
        axes.plot(at / len(values), np.median(ordered / np.maximum(ordered[0], 1e-12), axis=1), style, label=name)
    axes.set(xscale="log", xlabel="rank, fraction of the examples", ylabel="coefficient, of the largest")
    axes.legend(frameon=False)
    return figure
