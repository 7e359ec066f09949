"""The norms of all Fishers in a few numbers, and the examples that stand out."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from npeff_jax._checks import listing

SPREADS = 5.0
"""How many robust standard deviations of the log norms above their median an outlier lies. Norms of Fishers spread over
orders of magnitude, roughly evenly on a log scale; of normal ones, one in three million is so far out."""

TO_DEVIATION = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""


@dataclasses.dataclass(frozen=True, eq=False)
class NormSummary:
    """Frobenius norms of the Fishers of all examples that did not fail.

    Attributes:
        median: of the norms.
        largest: of them.
        threshold: above it an example is an outlier.
        outliers: examples above the threshold, the largest first.
        failed: examples that were skipped.
    """

    median: float
    largest: float
    threshold: float
    outliers: Int[np.ndarray, "outliers"]
    failed: Int[np.ndarray, "failed"]

    @classmethod
    def of(cls, norms: Float[np.ndarray, "n"]) -> "NormSummary":
        """From the norms of all examples, NaN where one failed."""
        failed = np.flatnonzero(~np.isfinite(norms))
        some = norms[norms > 0]  # a Fisher of zero has no logarithm, and is no outlier above
        logs = np.log(some.astype(np.float64)) if some.size else np.zeros(1)
        spread = TO_DEVIATION * float(np.median(np.abs(logs - np.median(logs))))
        threshold = float(np.exp(np.median(logs) + SPREADS * max(spread, float(np.finfo(np.float32).eps))))
        order = np.argsort(-norms, kind="stable")
        usable = np.isfinite(norms)
        return cls(
            median=float(np.median(norms[usable])) if usable.any() else float("nan"),
            largest=float(np.max(norms[usable])) if usable.any() else float("nan"),
            threshold=threshold,
            outliers=order[norms[order] > threshold],
            failed=failed,
        )

    def to_json(self) -> dict[str, Any]:
        return {f.name: np.asarray(getattr(self, f.name)).tolist() for f in dataclasses.fields(self)}

    def __str__(self) -> str:
        sentence = f"norms of the Fishers: median {self.median:.3g}, largest {self.largest:.3g}"
        if self.outliers.size:
            names = listing([str(i) for i in self.outliers])
            sentence += f"; {self.outliers.size} outliers above {self.threshold:.3g}: examples {names}"
        if self.failed.size:
            sentence += f"; {self.failed.size} failed: examples {listing([str(i) for i in self.failed])}"
        return sentence
