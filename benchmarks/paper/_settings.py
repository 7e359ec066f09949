"""The models of the paper's experiments, in small, and what scripts ask about them.

The paper explains BERT-base on MNLI and a ResNet-50 on ImageNet. Here a two-layer transformer learns inference on
sentence pairs of a small language, with a planted shortcut, and a convolutional network learns rendered digits in a
hundred classes. Sizes, splits and seeds stand here and were fixed before the first decomposition at the full setting.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from _cache import Cache

import npeff_jax as npeff
from npeff_jax.perturbation import PAPER_THRESHOLD
from npeff_jax.tasks import Dataset


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """A trained model, and examples it was not trained on: some to decompose, others to judge the components by.

    Attributes:
        name: language or vision.
        model: the model.
        head: the rest of the model after its final representation.
        examples: n to decompose.
        heldout: others, that components are judged by.
        keep: K.
        n_components: r.
        n_top: held-out examples that stand for a component.
        cache: where results are kept.
        min_probability: classes below are ignored.
        pool: the examples and still others, of which the wrongly predicted ones are decomposed in section 3.5.
    """

    name: str
    model: npeff.Model
    head: Any
    examples: Dataset
    heldout: Dataset
    keep: int
    n_components: int
    n_top: int
    cache: Cache
    min_probability: float = 0.0
    pool: Dataset | None = None

    def pefs(self, *, diagonal: bool = False, keep: int | None = None, heldout: bool = False) -> npeff.Pefs:
        """PEFs of the examples to decompose, or of the held-out ones."""
        keep = keep or self.keep
        dataset = self.heldout if heldout else self.examples
        name = f"{self.name}-pefs-{'D' if diagonal else 'LRM'}-K{keep}{'-heldout' if heldout else ''}"
        return self.cache(name, lambda: self.compute_pefs(dataset, keep, diagonal))

    def compute_pefs(self, dataset: Dataset, keep: int, diagonal: bool = False) -> npeff.Pefs:
        """PEFs of any examples of this model."""
        kind = (npeff.Diagonal if diagonal else npeff.LowRank)(min_probability=self.min_probability)
        return npeff.compute_pefs(self.model, dataset.examples, kind, labels=dataset.labels, keep=keep, progress=False)

    def decomposition(
        self, *, diagonal: bool = False, keep: int | None = None, r: int | None = None, seed: int = 0
    ) -> npeff.Decomposition:
        """Of the examples to decompose."""
        keep, r = keep or self.keep, r or self.n_components
        pefs = self.pefs(diagonal=diagonal, keep=keep)
        name = f"{self.name}-decomposition-{'D' if diagonal else 'LRM'}-K{keep}-r{r}-seed{seed}"
        return self.cache(name, lambda: npeff.decompose(pefs, r, seed=seed, progress=False))

    def fit(self, *, diagonal: bool = False, r: int | None = None) -> npeff.CoefficientFit:
        """Coefficients of the held-out examples."""
        decomposition, pefs = self.decomposition(diagonal=diagonal, r=r), self.pefs(diagonal=diagonal, heldout=True)
        name = f"{self.name}-fit-{'D' if diagonal else 'LRM'}{f'-r{r}' if r else ''}"
        return self.cache(name, lambda: npeff.fit_coefficients(decomposition, pefs))

    def selectivity(
        self,
        *,
        diagonal: bool = False,
        reject_below: float | None = PAPER_THRESHOLD,
        r: int | None = None,
        every: int = 1,
    ) -> npeff.Selectivity:
        """Components perturbed, every so many of them, and judged on the held-out examples."""
        decomposition, pefs = self.decomposition(diagonal=diagonal, r=r), self.pefs(diagonal=diagonal, heldout=True)
        options = {"fit": self.fit(diagonal=diagonal, r=r), "n_top": self.n_top}
        options |= {} if diagonal else {"reject_below": reject_below}
        options["components"] = np.arange(0, decomposition.n_components, every)
        name = f"{self.name}-selectivity-{'D' if diagonal else 'LRM'}{'-plain' if reject_below is None else ''}"
        return self.cache(
            name + (f"-r{r}-every{every}" if r else ""),
            lambda: npeff.selectivity(
                self.model, decomposition, pefs, self.heldout.examples, **options, seed=0, progress=False
            ),
        )

    def predictions(self, dataset: Dataset) -> np.ndarray:
        """The class that the model predicts for each example."""
        logits = jax.jit(jax.vmap(self.model.logits_fn, (None, 0)))(self.model.params, dataset.examples)
        return np.asarray(logits).argmax(-1)

    def describe(self) -> dict[str, Any]:
        """Sizes and accuracy, for the JSON."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        numbers = {name: value for name, value in fields.items() if isinstance(value, (str, int, float))}
        accuracy = float((self.predictions(self.heldout) == self.heldout.labels).mean())
        sizes = {"parameters": self.model.space.size, "examples": len(self.examples), "heldout": len(self.heldout)}
        return numbers | sizes | {"heldout_accuracy": round(accuracy, 4)}


def language(cache: Cache, fast: bool) -> Setting:
    """A two-layer transformer on sentence pairs, three classes: `npeff_jax.tasks.shortcut`."""
    sizes = {"keep": 4096, "n_components": 128, "n_top": 128}
    return _on_pairs("language", cache, fast, {}, sizes)


def flawed_language(cache: Cache, fast: bool) -> Setting:
    """A larger one that has seen fewer exceptions to its shortcut: for section 3.5, where the step is larger too.

    The paper's norm of 0.3 throws the one above off its course. Of two sizes, two fractions of exceptions and three K
    this was chosen on the held-out examples that choose signs, before any other was looked at (see RESULTS.md).
    """
    model = {"counterexamples": 0.02} if fast else {"counterexamples": 0.02, "width": 64, "layers": 4}
    return _on_pairs("flawed", cache, fast, model, {"keep": 2048, "n_components": 128, "n_top": 128})


def _on_pairs(name: str, cache: Cache, fast: bool, model: dict[str, Any], sizes: dict[str, int]) -> Setting:
    n_train, n_examples, n_pool, n_heldout, steps = (
        (2000, 300, 300, 600, 300) if fast else (10_000, 2000, 5000, 10_000, 3000)
    )
    model = model | {"n_train": n_train, "n_heldout": n_examples + n_pool + n_heldout, "seed": 0, "progress": False}
    params = cache(f"{name}-parameters", lambda: _on_host(npeff.tasks.shortcut(**model, steps=steps).model.params))
    untrained = npeff.tasks.shortcut(**model, steps=0)
    rest = untrained.heldout
    return Setting(
        name,
        dataclasses.replace(untrained.model, params=params),
        untrained.head,
        examples=rest.subset(slice(n_examples)),
        pool=rest.subset(slice(n_examples + n_pool)),
        heldout=rest.subset(slice(n_examples + n_pool, None)),
        cache=cache,
        **({"keep": 1024, "n_components": 12, "n_top": 16} if fast else sizes),
    )


def vision(cache: Cache, fast: bool) -> Setting:
    """A convolutional network on rendered digits, a hundred classes."""
    import _vision

    n_train, n_examples, n_heldout, steps = (300, 150, 250, 60) if fast else (600, 2000, 6000, 2500)
    examples, heldout, train = _vision.split(n_train, n_examples, n_heldout)
    params = cache("vision-parameters", lambda: _on_host(_vision.train(*train, steps)))
    model, head = _vision.model(params)
    return Setting(
        "vision",
        model,
        head,
        examples=examples,
        heldout=heldout,
        cache=cache,
        min_probability=_vision.MIN_PROBABILITY,
        **(
            {"keep": 512, "n_components": 12, "n_top": 16} if fast else {"keep": 2048, "n_components": 64, "n_top": 128}
        ),
    )


def _on_host(params: Any) -> Any:
    return jax.tree.map(np.asarray, params)
