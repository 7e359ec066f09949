"""`Selectivity`: divergences under perturbations of every component, and the ratios computed from them."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from npeff_jax._html import facts_html, table_html


@dataclasses.dataclass(frozen=True, eq=False)
class Selectivity:
    """Effects of perturbing c components with both signs on e evaluated examples.

    A KL ratio is a mean KL over top examples divided by the mean over random other examples. The ratio reported for a
    component is the larger one of its two signs, as in the paper (section 3.1.2); nulls take the same maximum. A dead
    component (with a zero pseudo-Fisher vector) has a ratio of NaN.

    Attributes:
        components: (c,), indices of the components.
        top: (c, n_top), top examples of each component, highest coefficient first.
        evaluated: (e,), ascending, the top examples of all components and the random examples.
        is_random: (e,), whether each evaluated example is a random one. The baseline of a component is the mean over
            these without its own top examples.
        kl: (c, 2, e), KL(p_θ ‖ p_{θ±δ}) in nats; sign + first (for diagonal components, the one that lowers the loss of
            their examples). NaN where not measured, which only happens with ``Nulls(n_other_components=…)``.
        predicted_kl: (c, 2, e), prediction of ``kl`` by eq. 5.
        norms: (c, 2), ‖δ‖.
        kl_ratios: (c, 2), KL ratio of each component's perturbation on its own top examples, per sign.
        loss_sign: (c,), the sign that lowers the loss of the top examples according to its gradient, +1 or −1; 0 if the
            model's outputs have no loss or the component was not moved. Unlike `sign`, it does not depend on ``kl``.
        pef_norm_ratio: (c,), the same ratio of PEF norms, which measure sensitivity to any perturbation.
        null_kl_ratios: (c, c), at [j, k] the ratio on the top examples of j under the perturbation of k; NaN where not
            measured.
        random_kl_ratios: (c, d), ratios under random directions of equal norm.
        prediction_correlation: (c,), rank correlation of predicted with measured KL over the evaluated examples
            (`rank_agreement`).
        coefficient_correlation: (c,), the same for the component's coefficients instead of predicted KL.
        ceiling: n / n_top, the largest possible ratio if the top examples also count among the others, as in the paper.
            Here they do not, so larger ratios are possible.
        left_out: examples whose PEFs, logits or coefficients are not finite; n does not count them.
        kl_error: (c, 2, e), standard errors of ``kl``: zero unless divergences are estimated from samples, as for
            generated answers. Empty if not computed.
        failures: (c, 2), why a component could not be moved with a sign, and so has a NaN ratio; empty otherwise.
        tried: (c, c), at [j, k] whether the perturbation of k was measured on the top examples of j; empty if all were.
    """

    components: Int[np.ndarray, "c"]
    top: Int[np.ndarray, "c n_top"]
    evaluated: Int[np.ndarray, "e"]
    is_random: Bool[np.ndarray, "e"]
    kl: Float[np.ndarray, "c 2 e"]
    predicted_kl: Float[np.ndarray, "c 2 e"]
    norms: Float[np.ndarray, "c 2"]
    kl_ratios: Float[np.ndarray, "c 2"]
    loss_sign: Int[np.ndarray, "c"]
    pef_norm_ratio: Float[np.ndarray, "c"]
    null_kl_ratios: Float[np.ndarray, "c c"]
    random_kl_ratios: Float[np.ndarray, "c d"]
    prediction_correlation: Float[np.ndarray, "c"]
    coefficient_correlation: Float[np.ndarray, "c"]
    ceiling: float
    left_out: Int[np.ndarray, "l"] = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    kl_error: Float[np.ndarray, "_ 2 _"] = dataclasses.field(default_factory=lambda: np.zeros((0, 2, 0)))
    failures: np.ndarray = dataclasses.field(default_factory=lambda: np.full((0, 2), ""))
    tried: Bool[np.ndarray, "_ _"] = dataclasses.field(default_factory=lambda: np.zeros((0, 0), bool))

    @property
    def kl_ratio(self) -> Float[np.ndarray, "c"]:
        """Larger ratio of the two signs."""
        return np.fmax(self.kl_ratios[:, 0], self.kl_ratios[:, 1])

    @property
    def kl_ratio_error(self) -> Float[np.ndarray, "c"]:
        """Standard error of `kl_ratio` due to sampled answers, to first order; zero for exact divergences.

        It does not include the choice of examples.
        """
        if not np.nan_to_num(self.kl_error, nan=1.0).any():
            return np.zeros(len(self.components))
        found = []
        for i, sign in enumerate(self.sign):
            kl, error = (values[i, 0 if sign > 0 else 1].astype(np.float64) for values in (self.kl, self.kl_error))
            top = np.isin(self.evaluated, self.top[i])
            means, errors = [], []
            for part in (top, self.is_random & ~top):
                means.append(kl[part].mean())
                errors.append(np.sqrt(np.sum(error[part] ** 2)) / part.sum())
            with np.errstate(divide="ignore", invalid="ignore"):
                found.append(np.hypot(errors[0] / means[1], means[0] * errors[1] / means[1] ** 2))
        return np.array(found)

    @property
    def sign(self) -> Int[np.ndarray, "c"]:
        """Sign with the larger ratio, +1 or −1."""
        return np.where(np.nan_to_num(self.kl_ratios[:, 0]) >= np.nan_to_num(self.kl_ratios[:, 1]), 1, -1)

    @property
    def null_kl_ratio(self) -> Float[np.ndarray, "c"]:
        """Median ratio on the same top examples over the perturbations of other components.

        NaN if there is no other component.
        """
        return _median(np.where(np.eye(len(self.components), dtype=bool), np.nan, self.null_kl_ratios))

    @property
    def null_exceeds(self) -> Float[np.ndarray, "c"]:
        """Fraction of other components whose perturbation has at least the same ratio on the same top examples."""
        other = ~np.eye(len(self.components), dtype=bool)
        tried = other & self.tried if self.tried.size else other
        exceeds = (self.null_kl_ratios >= self.kl_ratio[:, None]) & tried
        with np.errstate(invalid="ignore"):
            return exceeds.sum(axis=1) / tried.sum(axis=1)  # NaN without other components

    @property
    def kl_excess(self) -> Float[np.ndarray, "c"]:
        """Mean measured KL over the top examples divided by the prediction of eq. 5, for `sign`.

        A value far above 1 means that the move is too long for a second-order effect, or that the coefficients explain
        little.
        """
        where = (np.arange(len(self.components)), np.where(self.sign > 0, 0, 1))
        tops = [np.isin(self.evaluated, row) for row in self.top]
        measured, predicted = (
            np.array([row[own].mean(dtype=np.float64) for row, own in zip(values[where], tops, strict=True)])
            for values in (self.kl, self.predicted_kl)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            return measured / predicted

    @property
    def random_kl_ratio(self) -> Float[np.ndarray, "c"]:
        """Median ratio over random directions. It is close to `pef_norm_ratio`, hence weak evidence."""
        return _median(self.random_kl_ratios)

    def log2_ratios(self) -> dict[str, Float[np.ndarray, "c"]]:
        """Return log₂ of each ratio, as in the histograms of figure 3."""
        ratios = {
            "KL": self.kl_ratio,
            "PEF norm": self.pef_norm_ratio,
            "other components": self.null_kl_ratio,
            "random directions": self.random_kl_ratio,
        }
        with np.errstate(divide="ignore"):
            return {name: np.log2(ratio) for name, ratio in ratios.items()}

    def example_kl(self, component: int) -> Float[np.ndarray, "e"]:
        """Return the KL of each evaluated example under a component's perturbation, with the sign of its ratio.

        NaN where not measured.

        Raises:
            ValueError: the component was not perturbed.
        """
        found = np.flatnonzero(self.components == component)
        if found.size == 0:
            raise ValueError(f"component {component} was not perturbed; this table has {self.components.tolist()}")
        return self.kl[found[0], 0 if self.sign[found[0]] > 0 else 1]

    def __repr__(self) -> str:
        noise = _overall(self.kl_ratio_error)
        return (
            f"Selectivity of {len(self.components)} components, {self.top.shape[1]} top examples of each; medians: "
            f"KL ratio {_overall(self.kl_ratio):.3g}, of PEF norms {_overall(self.pef_norm_ratio):.3g}, under "
            f"other components {_overall(self.null_kl_ratio):.3g}, under random directions "
            f"{_overall(self.random_kl_ratio):.3g}; ceiling with the top examples left in {self.ceiling:.3g}"
            + (f"; standard error of a KL ratio from the drawn answers {noise:.2g}" if noise > 0 else "")
            + (f"; {len(self.left_out)} examples that failed left out" if len(self.left_out) else "")
            + (f"; {self._n_failed} components not moved" if self._n_failed else "")
        )

    @property
    def _n_failed(self) -> int:
        return int((self.failures != "").all(axis=1).sum())

    def _repr_html_(self) -> str:
        facts = [
            ("median KL ratio", float(np.nanmedian(self.kl_ratio))),
            ("of other components' perturbations (null)", _overall(self.null_kl_ratio)),
            ("of PEF norms", float(np.nanmedian(self.pef_norm_ratio))),
        ]
        order = np.argsort(-np.nan_to_num(self.kl_ratio), kind="stable")
        columns = (self.components, self.sign, self.kl_ratio, self.null_kl_ratio, self.pef_norm_ratio)
        heads = ("component", "sign", "KL ratio", "null", "PEF norms")
        rows = [[column[i] for column in columns] for i in order]
        return facts_html(f"Selectivity of {len(self.components)} components", facts, table_html(heads, rows))

    def __str__(self) -> str:
        heads = ["component", "sign", "KL ratio", "PEF norms", "others", "random", "exceeded", "eq. 5 rank corr."]
        columns = zip(
            self.components,
            self.sign,
            self.kl_ratio,
            self.pef_norm_ratio,
            self.null_kl_ratio,
            self.random_kl_ratio,
            self.null_exceeds,
            self.prediction_correlation,
            strict=True,
        )
        lines = ["  ".join(heads)]
        for row in columns:
            cells = [f"{row[0]:d}", f"{row[1]:+d}", *(f"{value:.2f}" for value in row[2:])]
            lines.append("  ".join(cell.rjust(len(head)) for cell, head in zip(cells, heads, strict=True)))
        return "\n".join([*lines, repr(self)])


def _median(ratios: Float[np.ndarray, "c d"]) -> Float[np.ndarray, "c"]:
    """Return the median along the last axis, ignoring NaN; NaN if all are NaN."""
    return np.array([_overall(row) for row in ratios])


def _overall(values: Float[np.ndarray, "d"]) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else float("nan")
