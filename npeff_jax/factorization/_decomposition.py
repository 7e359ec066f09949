"""`Decomposition`: the result of a factorization, usable without the PEFs it was computed from."""

import dataclasses
import os
import shutil
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from npeff_jax._html import facts_html, spark_html
from npeff_jax._sharding import fetch, replicate
from npeff_jax._types import RowArray
from npeff_jax.factorization._compile import jit
from npeff_jax.factorization._finish import FinishedVectors, finish
from npeff_jax.factorization._objective import loss_terms, relative_loss
from npeff_jax.factorization._problem import Problem
from npeff_jax.pefs import FisherKind, Schema
from npeff_jax.store import (
    absolute_path,
    create_array,
    describe_arrays,
    open_arrays,
    read_manifest,
    writable_path,
    write_manifest,
)


@dataclasses.dataclass(frozen=True)
class History:
    """Loss and time of each iteration.

    Attributes:
        step: iteration number of each entry.
        loss: ‖F − Σ W H‖² / ‖F‖² after this iteration. With a sketched kernel, the loss of the sketched problem (see
            `Decomposition.loss`).
        seconds: wall-clock time since the start, in seconds.
    """

    step: Int[np.ndarray, "steps"]
    loss: Float[np.ndarray, "steps"]
    seconds: Float[np.ndarray, "steps"]


@dataclasses.dataclass(frozen=True, eq=False)
class Decomposition:
    """Components of a set of PEFs: F_i ≈ Σ_j W_ij H_j, with H_j = g_j g_jᵀ or Diag(h_j) (eq. 4).

    Components are ordered by their contribution to the fit, frozen ones first, then named ones. Pseudo-Fisher
    vectors have unit L2 norm; their scale is in W.

    Attributes:
        schema: schema of the PEFs that were decomposed: model, examples, layout, kind.
        coefficients: W, (n, r), non-negative.
        pseudo_fishers: G or H, (r, m'), read by row.
        parameter_indices: (m',), ascending, the position in ``schema.layout`` of each column of ``pseudo_fishers``.
        history: loss and time of each iteration.
        stopped: why the iterations ended, as a sentence.
        settings: solver, seed and everything else that determined the result.
        n_frozen: number of components that were given rather than learned (`expand`).
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
        """Kind of the decomposed PEFs: low-rank or diagonal."""
        return self.schema.kind

    @property
    def n_components(self) -> int:
        """r, the number of components."""
        return self.coefficients.shape[1]

    @property
    def loss(self) -> float:
        """‖F − Σ W H‖² / ‖F‖² of this result: the last entry of ``history``, except with a sketched kernel."""
        return float(self.settings.get("loss", self.history.loss[-1] if self.history.loss.size else np.nan))

    @classmethod
    def from_factors(
        cls,
        problem: Problem,
        W: Any,
        G: Any,
        *,
        history: History | None = None,
        stopped: str = "the factors were given",
        settings: dict[str, Any] | None = None,
    ) -> "Decomposition":
        """Make a decomposition from factors that were computed by other means, such as your own loop or optax.

        Vectors are scaled to unit norm (the scale goes into W), given a sign, and ordered by contribution; protected
        components come first, as given. Dead components and near duplicates are recorded.

        Args:
            problem: the factorized problem, from `Problem.of` or `Problem.from_rows`.
            W: (n, r), coefficients, non-negative.
            G: (r, size), vectors in the coordinates of ``problem.rows``.
            history: loss and time of each iteration; by default only the loss of these factors.
            stopped: why the iterations ended.
            settings: JSON-serialisable settings to record with the result.

        Raises:
            ValueError: factors of the wrong shape, negative or not finite.
        """
        if problem.origin is None:
            raise ValueError("got a Problem from inside a compiled step; pass the one that Problem.of returned")
        one = jax.ShapeDtypeStruct((problem.rows.n_rows, 1), np.float32)
        r, size = np.shape(W)[-1], jax.eval_shape(problem.rows.pull_back, one).shape[1]
        if np.shape(W) != (problem.n_examples, r) or np.shape(G) != (r, size):
            raise ValueError(
                f"W has shape {np.shape(W)} and G {np.shape(G)}; expected ({problem.n_examples}, r) and (r, {size})"
            )
        W, G = (replicate(np.asarray(W, np.float32), problem.rows.mesh), G)
        if not (np.asarray(W) >= 0).all():
            raise ValueError("W has entries that are negative or not finite; coefficients are non-negative")
        GG, terms = _measured(problem.on_device(), W, G)
        if not np.isfinite(np.asarray(GG)).all():
            raise ValueError("G has entries that are not finite")
        if history is None:
            loss = relative_loss(fetch(terms), problem.origin.squared_norm)
            history = History(np.zeros(1, np.int64), loss[None], np.zeros(1))
        return finished(problem, W, G, fetch(GG), history, stopped, settings or {})

    def pseudo_fisher(self, component: int) -> Float[np.ndarray, "m"]:
        """Return one component's pseudo-Fisher vector over all m explained parameters, zero at pruned parameters.

        Raises:
            IndexError: there is no such component.
        """
        if isinstance(component, bool | np.bool_) or not isinstance(component, int | np.integer):
            raise TypeError(f"component={component!r} is no whole number; expected 0 to {self.n_components - 1}")
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
            facts.insert(1, ("loss / ‖F‖²", self.loss))
        if self.names:
            facts.insert(1, ("named", ", ".join(f"{name} ({j})" for j, name in self.names.items())))
        if "failed_examples" in self.settings:
            facts.append(("examples left out, their PEFs failed", self.settings["failed_examples"]))
        curve = "loss " + self.settings.get("history", "") + " over the iterations"
        name = "LRM-NPEFF" if self.kind is FisherKind.LOW_RANK else "D-NPEFF"
        return facts_html(f"Decomposition ({name})", facts, spark_html(self.history.loss, " ".join(curve.split())))

    @property
    def dead(self) -> list[int]:
        """Components whose contribution to the fit is below its rounding error."""
        return list(self.settings.get("dead", []))

    @property
    def names(self) -> dict[int, str]:
        """Names of the named components (`Tuning`), by index. Named components come after frozen ones."""
        return {int(j): str(name) for j, name in self.settings.get("names", [])}

    def component_named(self, name: str) -> int:
        """Return the index of a named component.

        Raises:
            KeyError: no component has this name.
        """
        for j, known in self.names.items():
            if known == name:
                return j
        raise KeyError(f"no component is named {name!r}; there are {list(self.names.values()) or 'no named ones'}")

    @property
    def duplicates(self) -> list[tuple[int, int]]:
        """Pairs of components whose pseudo-Fishers are nearly parallel."""
        return [(i, j) for i, j in self.settings.get("duplicates", [])]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the decomposition to the directory ``path``.

        Raises:
            FileExistsError: ``path`` exists.
        """
        target = writable_path(path)
        if target.exists():
            raise FileExistsError(f"{target} exists; choose another path or remove it first")
        partial = target.with_name(target.name + ".partial")
        if partial.exists():
            shutil.rmtree(partial)  # left by an interrupted save
        partial.mkdir(parents=True)
        arrays = {name: getattr(self, name) for name in ARRAYS}
        arrays |= {f"history_{f.name}": getattr(self.history, f.name) for f in dataclasses.fields(History)}
        for name, array in arrays.items():
            # one chunk per component: vectors larger than memory are formed in blocks, and later read by row
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


def finished(
    problem: Problem,
    W: Any,
    G: Any,
    GG: Float[np.ndarray, "r r"],
    history: History,
    stopped: str,
    settings: dict[str, Any],
) -> Decomposition:
    """Put factors into their final form. The pseudo-Fishers are formed when they are read."""
    origin = problem.origin
    assert origin is not None
    done = finish(fetch(W), GG, problem.kind, origin.squared_norm, problem.n_frozen, problem.n_named)

    def form(components: np.ndarray) -> np.ndarray:
        return problem.rows.expand(_some(G, replicate(np.asarray(components, np.int32), problem.rows.mesh)))

    own: dict[str, Any] = {"n_components": len(done.order), "n_frozen": problem.n_frozen}
    if problem.names:
        given = settings.get("names", [])  # names of protected components
        own["names"] = [*given, *([problem.n_frozen + k, name] for k, name in enumerate(problem.names))]
        settings = {key: value for key, value in settings.items() if key != "names"}
    remarks = {"squared_norm": origin.squared_norm, "dead": done.dead, "duplicates": done.duplicates}
    return Decomposition(
        schema=origin.schema,
        coefficients=done.W,
        pseudo_fishers=FinishedVectors(form, done.order, origin.frozen),
        parameter_indices=origin.parameter_indices,
        history=history,
        stopped=stopped,
        settings=own | settings | origin.notes | remarks,
        n_frozen=problem.n_frozen,
    )


@jit
def _some(G: Any, components: Any) -> Any:
    return G[components]


@jit
def _measured(problem: Problem, W: Any, G: Any) -> tuple[Any, Any]:
    """Return G Gᵀ and the terms of the loss."""
    AG, GG = problem.products(G)
    return GG, loss_terms(W, *problem.least_squares(AG, GG))


def loss_of(problem: Problem, W: Any, G: Any) -> float:
    """Return the loss of eq. 4, without the term of tunings, relative to ‖F‖²."""
    assert problem.origin is not None
    return float(relative_loss(fetch(_measured(problem.on_device(), W, G)[1]), problem.origin.squared_norm))


ARRAYS = ("coefficients", "pseudo_fishers", "parameter_indices")

SCHEMA_VERSION = 1

BLOCK_BYTES = 1 << 30
"""Size in bytes of the blocks in which pseudo-Fishers are formed and written. Each block reads all rows once."""


def load_decomposition(path: str | os.PathLike[str]) -> Decomposition:
    """Load a decomposition that `Decomposition.save` wrote. Its pseudo-Fishers stay on disk and are read by row.

    Raises:
        ValueError: there is no decomposition at ``path``, or it has another version.
    """
    source = absolute_path(path)
    manifest = read_manifest(source)
    if manifest is None or "stopped" not in manifest:
        raise ValueError(f"{source} holds no decomposition; pass the path that Decomposition.save was given")
    if not isinstance(manifest.get("settings"), dict) or not isinstance(manifest.get("stopped"), str):
        raise ValueError(f"{source / 'manifest.json'} is damaged: it lacks settings; copy it again from where it came")
    if type(manifest.get("n_frozen")) is not int:
        raise ValueError(f"{source / 'manifest.json'} is damaged: n_frozen is {manifest.get('n_frozen')!r}")
    if manifest.get("version") != SCHEMA_VERSION:
        raise ValueError(
            f"{source} has version {manifest.get('version')!r}, this code reads {SCHEMA_VERSION}; decompose again"
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
