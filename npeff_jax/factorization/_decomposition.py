"""`Decomposition`: what a factorization found, and everything needed to use it without the PEFs it was found in."""

import dataclasses
import os
import shutil
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from npeff_jax._html import facts_html, spark_html
from npeff_jax._types import RowArray
from npeff_jax.pefs import FisherKind, Schema
from npeff_jax.store import absolute_path, create_array, describe_arrays, open_arrays, read_manifest, write_manifest


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
    def kind(self) -> FisherKind:
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

    def _repr_html_(self) -> str:
        facts: list[tuple[str, Any]] = [
            ("components", f"{self.n_components}, {self.n_frozen} frozen" if self.n_frozen else self.n_components),
            ("examples", len(self.coefficients)),
            ("parameters used", f"{len(self.parameter_indices):,} of {self.schema.layout.size:,}"),
            ("coefficients that are zero", f"{np.mean(self.coefficients == 0):.0%}"),
            ("stopped", self.stopped),
        ]
        if self.history.loss.size:
            facts.insert(1, ("loss / ‖F‖²", float(self.history.loss[-1])))
        name = "LRM-NPEFF" if self.kind is FisherKind.LOW_RANK else "D-NPEFF"
        return facts_html(f"Decomposition ({name})", facts, spark_html(self.history.loss, "loss over the iterations"))

    @property
    def dead(self) -> list[int]:
        """Components that explain nothing: below rounding of the fit."""
        return list(self.settings.get("dead", []))

    @property
    def duplicates(self) -> list[tuple[int, int]]:
        """Pairs of components whose pseudo-Fishers are nearly the same vector."""
        return [(i, j) for i, j in self.settings.get("duplicates", [])]

    def save(self, path: str | os.PathLike) -> None:
        """Write everything to the directory ``path``.

        Raises:
            FileExistsError: there is something at ``path``.
        """
        target = absolute_path(path)
        if target.exists():
            raise FileExistsError(f"{target} exists; choose another path or remove it first")
        partial = target.with_name(target.name + ".partial")
        if partial.exists():
            shutil.rmtree(partial)  # of a save that was cut off
        partial.mkdir(parents=True)
        arrays = {name: getattr(self, name) for name in ARRAYS}
        arrays |= {f"history_{f.name}": getattr(self.history, f.name) for f in dataclasses.fields(History)}
        for name, array in arrays.items():
            # one chunk a component: what is larger than memory is formed in blocks, and later read by row
            chunk = 1 if name == "pseudo_fishers" else max(len(array), 1)
            stored = create_array(partial / name, array.shape, array.dtype, chunk)
            rows = max(chunk, BLOCK_BYTES // (4 * max(array.shape[-1], 1)))
            for first in range(0, len(array), rows):
                stored.write(first, min(first + rows, len(array)), np.asarray(array[first : first + rows])).result()
        manifest = {
            "version": SCHEMA_VERSION,
            "schema": self.schema.to_json(),
            "stopped": self.stopped,
            "settings": self.settings,
            "n_frozen": self.n_frozen,
            "arrays": describe_arrays(partial, list(arrays)),
        }
        write_manifest(partial, manifest)
        partial.rename(target)


ARRAYS = ("coefficients", "pseudo_fishers", "parameter_indices")

SCHEMA_VERSION = 1

BLOCK_BYTES = 1 << 30
"""Size of a block of pseudo-Fishers in memory while they are formed and written: each block reads all rows once."""


def load_decomposition(path: str | os.PathLike) -> Decomposition:
    """What `Decomposition.save` wrote. The pseudo-Fishers stay on disk and are read by row.

    Raises:
        ValueError: there is no decomposition at ``path``, or one of another version.
    """
    source = absolute_path(path)
    manifest = read_manifest(source)
    if manifest is None or "stopped" not in manifest:
        raise ValueError(f"{source} holds no decomposition; pass the path that Decomposition.save was given")
    if manifest["version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{source} has version {manifest['version']}, this code reads {SCHEMA_VERSION}; decompose again"
        )
    names = [*ARRAYS, *(f"history_{f.name}" for f in dataclasses.fields(History))]
    stored = open_arrays(source, names, manifest)
    history = History(*(stored[f"history_{f.name}"][:] for f in dataclasses.fields(History)))
    return Decomposition(
        schema=Schema.from_json(manifest["schema"]),
        coefficients=stored["coefficients"][:],
        pseudo_fishers=stored["pseudo_fishers"],
        parameter_indices=stored["parameter_indices"][:],
        history=history,
        stopped=manifest["stopped"],
        settings=manifest["settings"],
        n_frozen=manifest["n_frozen"],
    )
