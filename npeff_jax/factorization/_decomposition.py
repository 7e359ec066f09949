"""`Decomposition`: what a factorization found, and everything needed to use it without the PEFs it was found in."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from npeff_jax._types import RowArray
from npeff_jax.pefs import Kind, Schema


@dataclasses.dataclass(frozen=True)
class History:
    """What was measured on the way.

    Attributes:
        step: iteration number of each entry.
        loss: ‖F − Σ W H‖² at it, as a fraction of the PEFs' squared norm ‖F‖².
        seconds: wall-clock since the start.
    """

    step: Int[np.ndarray, "steps"]
    loss: Float[np.ndarray, "steps"]
    seconds: Float[np.ndarray, "steps"]


@dataclasses.dataclass(frozen=True, eq=False)
class Decomposition:
    """Components of a set of PEFs: F_i ≈ Σ_j W_ij H_j, with H_j = g_j g_jᵀ or Diag(h_j) (eq. 4).

    Components are ordered by their contribution to the fit, frozen ones first. Pseudo-Fisher vectors have unit L2 norm;
    their scale is in W.

    Attributes:
        schema: of the PEFs that were decomposed: model, examples, layout, kind.
        coefficients: W, (n, r), non-negative.
        pseudo_fishers: G or H, (r, m'), read by row.
        parameter_indices: (m',), ascending, the position in ``schema.layout`` of each column of ``pseudo_fishers``.
        history: losses on the way.
        stopped: why the iterations ended, a sentence.
        settings: solver, seed and everything else that determined the result.
        n_frozen: how many components were given rather than learned (`expand`).
    """

    schema: Schema
    coefficients: Float[np.ndarray, "n r"]
    pseudo_fishers: RowArray
    parameter_indices: Int[np.ndarray, "m_kept"]
    history: History
    stopped: str
    settings: dict[str, Any]
    n_frozen: int = 0

    @property
    def kind(self) -> Kind:
        """The flavour: low-rank or diagonal."""
        return self.schema.kind

    @property
    def n_components(self) -> int:
        """R."""
        return self.coefficients.shape[1]

    def pseudo_fisher(self, component: int) -> Float[np.ndarray, "m"]:
        """One component's pseudo-Fisher vector over all m explained parameters, zero where it was pruned.

        Raises:
            IndexError: there is no such component.
        """
        if not 0 <= component < self.n_components:
            raise IndexError(
                f"component={component} is out of range; this decomposition has {self.n_components} components"
            )
        vector = np.zeros(self.schema.layout.size, np.float32)
        vector[self.parameter_indices] = self.pseudo_fishers[component]
        return vector
