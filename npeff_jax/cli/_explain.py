"""``npeff explain``: from a model and a data set to a report, in one command."""

import dataclasses
import enum
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

import npeff_jax as npeff
from npeff_jax._checks import check_in_range
from npeff_jax._extras import needs
from npeff_jax._progress import Progress
from npeff_jax.cli._options import Explained, Fishers, Flag, MaybeInt, MaybeText, Show, mesh_of, progress_of
from npeff_jax.cli._record import (
    STAGES,
    default_arguments,
    differences,
    flat_arguments,
    load_arrays,
    local_place,
    record_of,
    save_arrays,
)
from npeff_jax.cli._source import is_texts
from npeff_jax.models import Categorical, Model
from npeff_jax.tasks import Dataset

_RECORD = "explain.record.json"
_MADE = (
    "split.npz",
    "pefs",
    "heldout",
    "components",
    "other",
    "fit.npz",
    "selectivity.npz",
    "report.html",
    "report.json",
)
_LEAST = 20
"""Smallest number of examples that allows held-out examples and components shared by several examples."""

_FEWEST_HELD_OUT = 3
"""Smallest number of held-out examples: two top examples of a component and one to compare with."""

_MAX_ERROR = 0.35
"""Median error allowed for a sparsified Fisher. For a classifier of 3.6 million parameters it needs a quarter of the
entries, and of the time of a decomposition, that an error of 0.25 needs. --keep overrides it."""

_TOP = 16
_OTHERS = 4
_NULLS = npeff.Nulls(n_random_examples=32, n_random_directions=2, n_other_components=_OTHERS)
"""Sizes of the nulls for a first report. The paper's settings (128 top examples, all other examples, all other
components) take about four times as many forward passes."""


def explain(
    explained: Explained,
    fishers: Fishers,
    out: Path,
    heldout: float = 0.2,
    n_components: MaybeInt = None,
    keep: MaybeInt = None,
    n_top: MaybeInt = None,
    marks: int = 2,
    norm: float = 0.1,
    limit: MaybeInt = None,
    seed: int = 0,
    any_accuracy: Flag = False,
    title: MaybeText = None,
    all_devices: Flag = False,
    progress: Show = Show.BAR,
    overwrite: Flag = False,
) -> None:
    """Explain a model on a data set: split, check, plan, compute, decompose, fit, perturb, report.

    If interrupted, run the same command again to continue.

    Args:
        explained: the model and its examples.
        fishers: representation of Fishers.
        out: directory for the report, report.html, and for intermediate results.
        heldout: fraction of the examples of each class that is not decomposed, but shown and used for tests.
        n_components: number of components; by default the square root of the number of examples.
        keep: non-zeros kept per example; by default chosen by a plan that measures a few examples.
        n_top: top examples by which a component is tested; by default a tenth of the examples, at most 16.
        marks: top examples per component in which important words or parts are marked; 0 for none.
        norm: L2 norm of the change of the parameters that tests a component.
        limit: maximum number of examples, drawn at random.
        seed: seed of split, plan, decomposition and test.
        any_accuracy: continue even if predictions agree with labels no more often than by chance.
        title: title of the report.
        all_devices: use all devices instead of the first.
        progress: a bar, JSON lines, or none.
        overwrite: replace existing results.
    """
    given = dict(locals())
    with needs("npeff explain"):
        import jinja2  # noqa: F401  fail before the long work
    check_in_range("--heldout", heldout, 0.05, 0.9)
    run = _Run.at(local_place(out), given, overwrite)
    shown, mesh = progress_of(progress), mesh_of(all_devices)
    model, data = explained.load(shown)
    train_rows, heldout_rows = _split(data, heldout, limit, seed)
    train, rest = data.subset(train_rows), data.subset(heldout_rows)
    print(f"{len(train):,} examples to decompose, {len(rest):,} held out")
    if data.labels is not None and isinstance(model.output, Categorical):
        _check_accuracy(model, train, any_accuracy)
    run.begin(overwrite)
    with (run.folder / "split.npz").open("wb") as file:
        np.savez(file, decomposed=train_rows, heldout=heldout_rows, seed=seed)
    representation = fishers.representation()
    if keep is None:
        planned = npeff.plan(model, train.examples, representation, max_error=_MAX_ERROR, seed=seed, mesh=mesh)
        keep = planned.suggested_keep
        print(planned)
    pefs, others = (
        npeff.compute_pefs(
            model,
            part.examples,
            representation,
            labels=part.labels,
            keep=keep,
            path=run.folder / name,
            mesh=mesh,
            progress=shown,
        )
        for name, part in (("pefs", train), ("heldout", rest))
    )
    r = n_components or max(2, round(len(train) ** 0.5))

    def decompose(path: Path) -> None:
        own_seed = seed if path.name.endswith("components") else seed + 1  # another start, for stability
        npeff.decompose(pefs, r, seed=own_seed, mesh=mesh, progress=shown).save(path)

    run.once("components", decompose)
    run.once("other", decompose)
    components, other = (npeff.load_decomposition(run.folder / name) for name in ("components", "other"))
    print(f"{r} components leave {components.history.loss[-1]:.1%} of the PEFs' squared norm")
    run.once("fit.npz", lambda path: save_arrays(path, npeff.fit_coefficients(components, others)))
    fit = load_arrays(run.folder / "fit.npz", npeff.CoefficientFit)
    top = n_top or max(2, min(_TOP, len(rest) // 10))
    print(
        f"each component is moved by ±{norm:g} and measured on its {top} top examples and "
        f"{min(_NULLS.n_random_examples, len(rest))} random ones, against the moves of {min(_OTHERS, r - 1)} other "
        f"components and {_NULLS.n_random_directions} random directions (npeff perturb measures every pair)"
    )

    def perturb(path: Path) -> None:
        found = npeff.selectivity(
            model,
            components,
            others,
            rest.examples,
            fit=fit,
            n_top=top,
            norm=norm,
            nulls=_NULLS,
            seed=seed,
            passes=npeff.Passes(mesh=mesh),
            progress=shown,
        )
        save_arrays(path, found)

    run.once("selectivity.npz", perturb)
    table = load_arrays(run.folder / "selectivity.npz", npeff.Selectivity)
    print(repr(table))
    report = npeff.report.report_data(
        components,
        others,
        fit,
        table,
        _shown(rest),
        model=model,
        title=title or f"{Path(explained.model).name} on {Path(explained.examples).name}",
        stability=npeff.compare_runs(components, other).forward,
        marks=_marks(explained, model, components, fit.coefficients, rest, marks, shown),
        about=npeff.report.About(
            model=explained.model,
            data=explained.examples,
            split=f"{len(train):,} decomposed, {len(rest):,} held out, class by class, seed {seed}",
            command=_command(given),
        ),
    )
    report.write(run.folder / "report.json")
    print(f"look at {npeff.report.write_html(run.folder / 'report.html', report).resolve()}")


STAGES["explain"] = explain


def _shown(data: Dataset) -> Any:
    """Return what the report shows of each example: the display, else inputs that are images, else only numbers."""
    shape: tuple[int, ...] = getattr(data.examples, "shape", ())
    images = len(shape) == 3 or (len(shape) == 4 and shape[-1] in (1, 3, 4))
    return data.examples if data.display is None and images else data.display


def _marks(
    explained: Explained,
    model: Model,
    components: npeff.Decomposition,
    coefficients: np.ndarray,
    data: Dataset,
    n_top: int,
    progress: Progress,
) -> Any:
    """Mark parts of top examples for the report, or return None if the inputs have no parts to leave out."""
    if n_top < 1 or components.kind is not npeff.FisherKind.LOW_RANK:
        return None
    encode = explained.encode()
    texts = data.display if encode is not None and is_texts(data.display) else None
    try:
        return npeff.report.mark_examples(
            model,
            components,
            coefficients,
            data.examples,
            texts=texts,
            encode=None if texts is None else encode,
            n_top=n_top,
            progress=progress,
        )
    except npeff.report.NoPartsError:
        return None


def _command(arguments: dict[str, Any]) -> str:
    """Return the command line for these arguments, leaving out those at their defaults."""
    flat = flat_arguments(arguments)
    defaults = default_arguments(explain)
    words = ["npeff", "explain"]
    for name, value in flat.items():
        if value == defaults.get(name) or value is None or value == () or name in ("progress", "overwrite"):
            continue
        words.append(f"--{name.replace('_', '-')}")
        plain = value.value if isinstance(value, enum.Enum) else value
        if value is not True:
            words += [str(part) for part in plain] if isinstance(plain, tuple) else [str(plain)]
    return shlex.join(words)


@dataclasses.dataclass(frozen=True)
class _Run:
    """The directory of an ``npeff explain`` run and the record of its arguments."""

    folder: Path
    record: dict[str, Any]

    @classmethod
    def at(cls, folder: Path, arguments: dict[str, Any], overwrite: bool) -> "_Run":
        """Return the run in ``folder``: a new one, or one begun with the same arguments. Writes nothing.

        Raises:
            FileExistsError: If the folder holds a run with other arguments and ``overwrite`` is false, or other files.
        """
        path, now = folder / _RECORD, record_of("explain", arguments)
        if path.exists():
            differ = differences(json.loads(path.read_text()), now)
            if differ and not overwrite:
                raise FileExistsError(
                    f"{folder} was made with another {differ}; choose another --out, or --overwrite it"
                )
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} exists already and is not a run of npeff explain; choose another --out")
        return cls(folder, now)

    def begin(self, overwrite: bool) -> None:
        """Write the record of the run; with ``overwrite``, first remove the results of an earlier run."""
        for name in _MADE if overwrite else ():
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _RECORD).write_text(json.dumps(self.record, indent=1) + "\n")

    def once(self, name: str, make: Callable[[Path], None]) -> None:
        """Make the part ``name`` unless it exists. It is written under a temporary name and renamed when complete."""
        whole, part = self.folder / name, self.folder / f"part-{name}"
        if whole.exists():
            return
        if part.is_dir():
            shutil.rmtree(part)
        make(part)
        part.rename(whole)


def _split(
    data: Dataset, heldout: float, limit: int | None, seed: int
) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "h"]]:
    """Split example positions into those to decompose and those held out, stratified by label."""
    n = len(data) if limit is None else min(limit, len(data))
    if n < _LEAST:
        raise ValueError(f"there are {n} examples; expected at least {_LEAST} to decompose and to hold out")
    rng = np.random.default_rng(seed)
    if data.groups is not None:
        return _split_groups(data.groups, heldout, n, rng)
    chosen = rng.permutation(len(data))[:n]
    labels = np.zeros(len(data), int) if data.labels is None else data.labels
    classes = [chosen[labels[chosen] == label] for label in np.unique(labels[chosen])]
    exact = heldout * np.array([len(own) for own in classes])
    held = np.floor(exact).astype(int)
    for _ in range(max(_FEWEST_HELD_OUT, round(heldout * n)) - held.sum()):
        held[np.argmax(exact - held)] += 1  # small classes alternate
    return (
        np.sort(np.concatenate([own[rest:] for own, rest in zip(classes, held)])),
        np.sort(np.concatenate([own[:rest] for own, rest in zip(classes, held)])),
    )


def _split_groups(
    groups: Any, heldout: float, n: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "h"]]:
    """Split about n example positions by whole groups, so that no group has examples on both sides."""
    order = rng.permutation(np.unique(groups))
    if len(order) < 2:
        raise ValueError("all examples are parts of one text; expected two or more, one of them to hold out")
    sizes = np.cumsum([np.sum(groups == group) for group in order])
    used = order[: max(2, int(np.searchsorted(sizes, n)) + 1)]
    rest = min(len(used) - 1, max(1, round(heldout * len(used))))
    return np.flatnonzero(np.isin(groups, used[rest:])), np.flatnonzero(np.isin(groups, used[:rest]))


def _check_accuracy(model: Model, train: Dataset, any_accuracy: bool) -> None:
    """Print the accuracy of predictions against labels; raise if it is no better than chance."""
    check = npeff.tasks.check_labels(model, train)
    n = int(check.confusion.sum())
    print(f"{check.accuracy:.1%} of {n} examples predicted as labelled; chance {check.chance:.1%}")
    deviation = (check.chance * (1 - check.chance) / n) ** 0.5
    if check.accuracy <= check.chance + 2 * deviation and not any_accuracy:
        better = "" if check.agrees else f" With {check.map_text} it would be {check.best_accuracy:.1%}."
        raise ValueError(
            f"{check.accuracy:.1%} of {n} examples are predicted as labelled, {check.chance:.1%} by chance: labels and "
            "model do not seem to mean the same classes, or inputs are encoded in another way than for training."
            f"{better} Say how labels are called in the order of the model's classes with --label-names, or go on all "
            "the same with --any-accuracy"
        )
