"""Estimates of the cost of PEFs and the loss by sparsification, measured on a few examples."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from npeff_jax._checks import check_integer, check_labels, check_real
from npeff_jax._examples import count_examples, first_example, slice_examples, take_examples
from npeff_jax._html import facts_html, table_html
from npeff_jax._machine import cores, size_text
from npeff_jax._sharding import EXAMPLES, examples_mesh, round_up
from npeff_jax._types import Examples
from npeff_jax.models import Model, check_model
from npeff_jax.pefs._batch import BatchRows, on_host
from npeff_jax.pefs._driver import as_representation, describe_run, labels_for, rows_for
from npeff_jax.pefs._keep import as_selection
from npeff_jax.pefs._memory import choose_at_once, choose_batch_size, program_bytes
from npeff_jax.pefs._schema import Normalization
from npeff_jax.pefs._sparsify import Sparsifier
from npeff_jax.pefs._step import SelectOn, selects_on_device
from npeff_jax.pefs.representations import FisherKind, Representation

KEEP = (256, 1024, 4096, 16_384, 65_536, 262_144)
"""Values of K to compare: the paper's three and smaller ones."""

TRACES = (0.9, 0.99, 0.999)
"""Fractions of the trace for which the rank is computed."""


@dataclasses.dataclass(frozen=True, eq=False)
class RunPlan:
    """Estimated cost and accuracy of `compute_pefs`.

    Attributes:
        n_examples: n, number of examples in the whole set.
        n_sampled: number of examples that were measured.
        n_parameters: m.
        n_rows: mean number of rows per example, c_i.
        batch_size: examples per batch.
        memory_bytes: bytes on all devices together, besides the model, as reported by the compiled program: rows,
            gradients, activations, and the selection on the devices.
        at_once: examples whose rows a device holds at a time.
        on_device: whether the entries to keep are selected on the devices.
        seconds: time to compute the PEFs of all n examples, without compilation, extrapolated from the sample.
        compile_seconds: additional time of the first batch, for compilation.
        keep: values of K that were compared.
        kept_energy: (choices,), median fraction of the trace kept.
        fisher_error: (choices,), median relative Frobenius error.
        disk_bytes: (choices,), size of the PEFs on disk before compression.
        max_error: largest error allowed for `suggested_keep`.
        min_trace: fractions of the trace.
        rank: (fractions,), mean number of rows that hold these fractions, as kept by ``LowRank(min_trace=...)``. None
            for diagonal PEFs.
    """

    n_examples: int
    n_sampled: int
    n_parameters: int
    n_rows: float
    batch_size: int
    memory_bytes: float
    at_once: int
    on_device: bool
    seconds: float
    compile_seconds: float
    keep: tuple[int, ...]
    kept_energy: Float[np.ndarray, "choices"]
    fisher_error: Float[np.ndarray, "choices"]
    disk_bytes: tuple[int, ...]
    max_error: float
    min_trace: tuple[float, ...]
    rank: Float[np.ndarray, "fractions"] | None

    @property
    def total_rows(self) -> float:
        """Estimated number of rows over all examples, N."""
        return self.n_examples * self.n_rows

    @property
    def kernel_bytes(self) -> float:
        """Size in bytes of the (N, N) Gram matrix of the kernel form, in float32."""
        return 4.0 * self.total_rows**2

    @property
    def suggested_keep(self) -> int:
        """Smallest compared K with a median error of at most ``max_error``; the largest if there is none."""
        good = [k for k, error in zip(self.keep, self.fisher_error, strict=True) if error <= self.max_error]
        return min(good) if good else max(self.keep)

    def _facts(self) -> list[tuple[str, Any]]:
        portions = f", {self.at_once} at a time on a device" if self.on_device else ""
        each = duration(1000 * self.seconds / self.n_examples)
        facts = [
            ("examples, parameters", f"{self.n_examples:,}, {self.n_parameters:,}"),
            ("rows (an example, all)", f"{self.n_rows:.3g}, {self.total_rows:,.0f}"),
            (
                "time",
                f"{duration(self.seconds)}, {each} a thousand, and {self.compile_seconds:.0f} s to compile",
            ),
            ("memory beside the model", f"{size_text(self.memory_bytes)} in batches of {self.batch_size}{portions}"),
            ("entries are selected on", "the devices" if self.on_device else "the host"),
            ("kernel form", f"{size_text(self.kernel_bytes)} for the Gram matrix of all rows"),
        ]
        if self.rank is not None:
            held = ", ".join(f"{r:.3g} for {t:g}" for r, t in zip(self.rank, self.min_trace, strict=True))
            facts.append(("rows an example needs (trace)", held))
        return [*facts, ("suggested keep", f"{self.suggested_keep:,}, {self._rule()}")]

    def _rule(self) -> str:
        if min(self.fisher_error) > self.max_error:
            return f"though its median error exceeds {self.max_error:g}: compare larger ones"
        return f"the smallest of these with a median error of at most {self.max_error:g}"

    def _rows(self) -> list[tuple[str, ...]]:
        columns = zip(self.keep, self.kept_energy, self.fisher_error, self.disk_bytes, strict=True)
        return [(f"{k:,}", f"{energy:.3f}", f"{error:.3f}", size_text(size)) for k, energy, error, size in columns]

    def _repr_html_(self) -> str:
        return facts_html(f"Plan, from {self.n_sampled} examples", self._facts(), table_html(_HEADS, self._rows()))

    def __str__(self) -> str:
        lines = [f"{name + ':':32}{value}" for name, value in self._facts()]
        table = ["".join(f"{cell:>16}" for cell in row) for row in [_HEADS, *self._rows()]]
        return "\n".join([*lines, *table, f"Medians of {self.n_sampled} examples."])

    def figure(self) -> Any:
        """Plot kept energy and error against K, with Matplotlib."""
        import matplotlib.pyplot as plt

        fig, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
        axes.semilogx(self.keep, self.kept_energy, "o-", label="trace kept")
        axes.semilogx(self.keep, self.fisher_error, "s-", label="Frobenius error")
        axes.axvline(self.suggested_keep, color="0.6", linestyle=":", label=f"suggested, {self.suggested_keep:,}")
        axes.set(xlabel="K, entries kept of an example", ylabel="median", ylim=(0, 1.02))
        axes.legend()
        return fig


_HEADS = ("keep", "energy kept", "Frobenius error", "on disk")


def plan(
    model: Model,
    examples: Examples,
    representation: Representation | type[Representation] | None = None,
    *,
    labels: Any = None,
    keep: Sequence[int] | None = None,
    n_sampled: int = 8,
    max_error: float = 0.25,
    seed: int = 0,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    precision: str = "highest",
    select_on: SelectOn = "auto",
) -> RunPlan:
    """Estimate the cost of the PEFs of all examples, and the loss by sparsification, from a few random examples.

    Args:
        model: the model to explain.
        examples: all n examples.
        representation: as for `compute_pefs`.
        labels: (n,), for representations that use labels.
        keep: values of K to compare; by default a geometric series.
        n_sampled: number of examples to measure.
        max_error: largest median relative error of a sparsified Fisher allowed for the suggested K.
        seed: seed of the choice of examples.
        batch_size: as for `compute_pefs`.
        mesh: as for `compute_pefs`.
        precision: as for `compute_pefs`.
        select_on: as for `compute_pefs`.

    Raises:
        ValueError: no examples, a choice of K that is out of range, or rows that do not fit in memory.
    """
    check_model(model)
    examples = take_examples(examples)
    n, m = count_examples(examples), model.space.size
    n_sampled, seed = min(check_integer("n_sampled", n_sampled), n), check_integer("seed", seed, 0)
    max_error = check_real("max_error", max_error, 0, 1)
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[:n_sampled])
    sample = slice_examples(examples, chosen)
    n_classes = model.n_classes(first_example(sample))
    representation = as_representation(representation, model.output, n_classes)
    given = check_labels(labels, n, n_classes)
    given = labels_for(representation, given)
    c = representation.n_rows(model.output, n_classes)
    most = (1 if representation.kind is FisherKind.DIAGONAL else c) * m
    keep = tuple(keep) if keep is not None else (*(k for k in KEEP if k < most), *([most] if most <= KEEP[-1] else []))
    keep = tuple(check_integer("keep", k, 1, most) for k in keep)
    mesh = examples_mesh(mesh)
    size = None if batch_size is None else check_integer("batch_size", batch_size)
    largest = as_selection(keep[-1])
    on_device = selects_on_device(select_on, mesh, representation, largest, c, m)
    size = size or choose_batch_size(4 * c * m, n, mesh, on_device)
    rows = BatchRows(model, representation, mesh, min(size, n_sampled), precision)
    settings: dict[str, Any] = {"n_classes": n_classes, "precision": precision, "known": {}}
    sparsifiers = []
    for k in keep:
        selection = as_selection(k)
        schema = describe_run(model, sample, representation, Normalization.BEFORE, keep=selection, **settings)
        sparsifiers.append(Sparsifier(schema, representation, selection))
    given = None if given is None else given[chosen]
    started = time.perf_counter()
    part, first = _few(sample, given, rows.batch_size)
    jax.block_until_ready(rows(part, 0, first))
    compile_seconds = time.perf_counter() - started
    measured = _measure(rows, sample, given, sparsifiers)
    program, seconds = rows, measured.seconds / n_sampled
    if on_device:  # measure time and memory of the program that selects on the devices
        at_once = choose_at_once(4 * c * m, mesh)
        program = rows_for(model, representation, largest, mesh, size, precision, at_once)
        seconds, compile_seconds = _timed(program, sample, given, sparsifiers[-1])
    memory = program_bytes(program.compiled(*_few(sample, given, program.batch_size)))
    size = program.batch_size if on_device else round_up(size, mesh.shape[EXAMPLES])
    share = size // mesh.shape[EXAMPLES]
    found, ranks = measured.found, np.array(measured.ranks)
    return RunPlan(
        n_examples=n,
        n_sampled=n_sampled,
        n_parameters=m,
        n_rows=float(np.mean([one[0]["n_rows"] for one in found])),
        batch_size=size,
        memory_bytes=memory * mesh.size * size / program.batch_size,
        at_once=program.at_once if on_device else share,
        on_device=on_device,
        seconds=seconds * n,
        compile_seconds=compile_seconds,
        keep=keep,
        kept_energy=_medians([[float(s["kept_energy"]) for s in one] for one in found]),
        fisher_error=_medians([[float(s["fisher_error"]) for s in one] for one in found]),
        disk_bytes=tuple(n * (9 * k + 4 * n_classes + 24) for k in keep),
        max_error=max_error,
        min_trace=TRACES,
        rank=None if representation.kind is FisherKind.DIAGONAL else ranks.mean(axis=0),
    )


@dataclasses.dataclass
class _Measured:
    """Per sampled example, the result of each sparsifier and the rank for each of `TRACES`; and the time of a run."""

    found: list[list[dict[str, Any]]]
    ranks: list[list[int]]
    seconds: float


def _medians(values: list[list[float]]) -> Float[np.ndarray, "choices"]:
    """Return medians over the examples, ignoring NaN."""
    known = np.array([one for one in values if not np.isnan(one).any()])
    return np.median(known, axis=0) if known.size else np.full(len(values[0]), np.nan)


def _measure(rows: BatchRows, sample: Examples, labels: Any, sparsifiers: list[Sparsifier]) -> _Measured:
    """Compute the sampled examples as `compute_pefs` does, and (not timed) with all other values of K."""
    *others, timed = sparsifiers
    n = count_examples(sample)
    measured = _Measured([], [], 0.0)
    with ThreadPoolExecutor(cores()) as threads:
        for start in range(0, n, rows.batch_size):
            part = jax.tree.map(lambda leaf, a=start: leaf[a : a + rows.batch_size], sample)
            began = time.perf_counter()
            given = None if labels is None else labels[start : start + rows.batch_size]
            ones = list(on_host(rows(part, start, given), min(rows.batch_size, n - start)))
            last = list(threads.map(timed, ones, range(start, start + len(ones))))
            measured.seconds += time.perf_counter() - began
            for i, one in enumerate(ones):
                measured.found.append([*(sparsify(one, start + i) for sparsify in others), last[i]])
                measured.ranks.append(list(_ranks(one)))
    return measured


def _timed(program: BatchRows, sample: Examples, labels: Any, sparsify: Sparsifier) -> tuple[float, float]:
    """Return seconds per example of a full batch, including the work on the host, and the extra time of a first run."""
    began, times = time.perf_counter(), []
    some, given = _few(sample, labels, program.batch_size)
    for _ in range(2):
        for i, one in enumerate(program.begin(some, 0, given)):
            sparsify(one, i)
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
    return times[1] / program.batch_size, times[0] - times[1]


def _few(examples: Examples, labels: Any, number: int) -> tuple[Examples, Any]:
    """Return the first ``number`` examples and their labels, if any."""
    return jax.tree.map(lambda leaf: leaf[:number], examples), None if labels is None else labels[:number]


def _ranks(one: Any) -> Iterator[int]:
    """Yield the number of principal rows that hold each fraction of the trace."""
    held = np.cumsum(np.linalg.eigvalsh(one.gram.astype(np.float64))[::-1])
    for trace in TRACES:
        yield 1 + int(np.sum(held < trace * held[-1]))


def duration(seconds: float) -> str:
    """Return a duration as text, with a suitable unit."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
