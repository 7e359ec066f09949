"""What PEFs will cost and lose, from a few examples, before the expensive run."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from npeff_jax._checks import check_in_range, count_examples, slice_examples
from npeff_jax._html import facts_html, table_html
from npeff_jax._sharding import EXAMPLES, default_mesh
from npeff_jax._types import Examples
from npeff_jax.models import Model
from npeff_jax.pefs._batch import BatchRows, on_host
from npeff_jax.pefs._cotangents import n_cotangents
from npeff_jax.pefs._driver import describe_run
from npeff_jax.pefs._memory import choose_batch_size
from npeff_jax.pefs._representation import Diagonal, LowRank, Normalization, Representation
from npeff_jax.pefs._sparsify import Sparsifier


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What to expect of `compute_pefs` and of what follows.

    Attributes:
        n_examples: n, of the whole set.
        n_sampled: examples that were measured.
        n_parameters: m.
        n_rows: median rows an example, c_i.
        batch_size: examples at a time.
        batch_bytes: of the dense rows of a batch, on all devices together.
        seconds: to compute the PEFs of all n examples, as measured on those sampled. Compilation comes on top.
        compile_seconds: the first batch took.
        keep: K, the choices compared.
        kept_energy: (choices,), median fraction of the trace kept.
        fisher_error: (choices,), median relative Frobenius error.
        disk_bytes: (choices,), of the PEFs.
        kernel_bytes: of the (N, N) Gram matrix of the kernel form, in float32.
    """

    n_examples: int
    n_sampled: int
    n_parameters: int
    n_rows: float
    batch_size: int
    batch_bytes: int
    seconds: float
    compile_seconds: float
    keep: tuple[int, ...]
    kept_energy: Float[np.ndarray, "choices"]
    fisher_error: Float[np.ndarray, "choices"]
    disk_bytes: tuple[int, ...]
    kernel_bytes: float

    def _facts(self) -> list[tuple[str, Any]]:
        return [
            ("examples, parameters", f"{self.n_examples:,}, {self.n_parameters:,}"),
            ("rows of an example (median)", f"{self.n_rows:g}"),
            ("time", f"{_duration(self.seconds)} after {self.compile_seconds:.0f} s of compilation"),
            ("a batch", f"{self.batch_size} examples, {_size(self.batch_bytes)} of rows"),
            ("kernel form", f"{_size(self.kernel_bytes)} for all examples"),
        ]

    def _rows(self) -> list[tuple[str, ...]]:
        columns = zip(self.keep, self.kept_energy, self.fisher_error, self.disk_bytes, strict=True)
        return [(f"{k:,}", f"{energy:.3f}", f"{error:.3f}", _size(size)) for k, energy, error, size in columns]

    def _repr_html_(self) -> str:
        return facts_html(f"Plan, from {self.n_sampled} examples", self._facts(), table_html(_HEADS, self._rows()))

    def __str__(self) -> str:
        lines = [f"{name + ':':32}{value}" for name, value in self._facts()]
        table = ["".join(f"{cell:>16}" for cell in row) for row in [_HEADS, *self._rows()]]
        return "\n".join([*lines, *table, "Medians; choose the smallest K whose error you can live with."])


_HEADS = ("keep", "energy kept", "Frobenius error", "on disk")


def plan(
    model: Model,
    examples: Examples,
    representation: Representation | None = None,
    *,
    keep: Sequence[int] | None = None,
    n_sampled: int = 8,
    seed: int = 0,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    precision: str = "highest",
) -> Plan:
    """Measure on a few random examples what PEFs of all of them will cost, and what sparsifying will lose.

    Args:
        model: what to explain.
        examples: all of them.
        representation: as for `compute_pefs`.
        keep: the choices of K to compare; a geometric series by default.
        n_sampled: examples to measure.
        seed: of their choice.
        batch_size: as for `compute_pefs`.
        mesh: as for `compute_pefs`.
        precision: as for `compute_pefs`.

    Raises:
        ValueError: no examples, or a choice of K that is out of range.
    """
    representation = representation or LowRank()
    n, m = count_examples(examples), model.space.size
    n_sampled = min(n_sampled, n)
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[:n_sampled])
    sample = jax.tree.map(
        lambda *leaves: np.concatenate(leaves), *[slice_examples(examples, slice(i, i + 1)) for i in chosen.tolist()]
    )
    n_classes = model.n_classes(jax.tree.map(lambda leaf: leaf[0], sample))
    c = n_cotangents(model.output, representation, n_classes)
    most = (1 if isinstance(representation, Diagonal) else c) * m
    keep = tuple(keep) if keep is not None else (*(2**p for p in range(8, 20, 2) if 2**p < most), most)
    for k in keep:
        check_in_range("keep", k, 1, most)
    mesh = default_mesh(mesh)
    size = batch_size or choose_batch_size(c * m, n, mesh.shape[EXAMPLES])
    rows = BatchRows(model, representation, mesh, min(size, n_sampled), precision)
    first = jax.tree.map(lambda leaf: leaf[: rows.batch_size], sample)
    started = time.perf_counter()
    jax.block_until_ready(rows(first, 0))
    compile_seconds = time.perf_counter() - started
    settings: dict[str, Any] = {"n_classes": n_classes, "precision": precision, "digest": ""}
    sparsifiers = []
    for k in keep:
        schema = describe_run(model, sample, representation, Normalization.BEFORE, keep=k, **settings)
        sparsifiers.append(Sparsifier(schema, representation, k))
    found: list[list[dict[str, Any]]] = []
    started, selecting = time.perf_counter(), 0.0
    for start in range(0, n_sampled, rows.batch_size):
        part = jax.tree.map(lambda leaf, a=start: leaf[a : a + rows.batch_size], sample)
        for i, one in enumerate(on_host(rows(part, start), min(rows.batch_size, n_sampled - start))):
            before = time.perf_counter()
            found.append([sparsify(one, start + i) for sparsify in sparsifiers])
            selecting += (time.perf_counter() - before) * (1 - 1 / len(keep))  # a run selects once, not once a choice
    each = (time.perf_counter() - started - selecting) / n_sampled
    n_rows = float(np.median([one[0]["n_rows"] for one in found]))
    return Plan(
        n_examples=n,
        n_sampled=n_sampled,
        n_parameters=m,
        n_rows=n_rows,
        batch_size=size,
        batch_bytes=4 * c * m * size,
        seconds=each * n,
        compile_seconds=compile_seconds,
        keep=keep,
        kept_energy=np.median([[float(s["kept_energy"]) for s in one] for one in found], axis=0),
        fisher_error=np.median([[float(s["fisher_error"]) for s in one] for one in found], axis=0),
        disk_bytes=tuple(n * (9 * k + 4 * n_classes + 24) for k in keep),
        kernel_bytes=4.0 * (n * n_rows) ** 2,
    )


def _size(count: float | int) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    return ""


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
