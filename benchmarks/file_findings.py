"""What the file-type network's components say: who they are about, wrong predictions behind them, and a repair by one.

    python benchmarks/file_findings.py FOLDER [--components 24] [--out findings.json]

Files are those of `file_set.py` (fetched into FOLDER if they are not there). 640 of them are decomposed and 160 more
are read beside them, as in `rivals.py`; all others, about 3,700, are halved at random. The wrongly predicted files of
one half teach new components beside the frozen ones (`expand`); this half also chooses which component, sign and norm
of its move mends most for one pair of types. The other half reports. Nulls: random directions of the same norm in the
span of the rows, with the better one of their signs.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
from typing import Any

import file_set
import jax
import numpy as np
import rival_problems

import npeff_jax as npeff
from npeff_jax.evaluation import compare_moves, find_repairs
from npeff_jax.perturbation import component_directions

PAIR = ("javascript", "typescript")
"""The type that the names of many wrongly predicted files stand for, and what the network says: chosen as the largest
group of which the label is right (`groups` lists all)."""

NORMS = (0.03, 0.1, 0.3, 1.0)
N_NEW = 8
N_CANDIDATES = 2
N_RANDOM = 3
OTHERS = {"choosing": 100, "reporting": 600}
"""Files of other types beside those of the pair."""


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Some files with what the network says of them."""

    windows: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    shown: list[tuple[str, ...]]

    def __getitem__(self, rows: np.ndarray) -> "Files":
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Files(self.windows[rows], self.labels[rows], self.logits[rows], [self.shown[i] for i in rows])

    @property
    def predicted(self) -> np.ndarray:
        return self.logits.argmax(axis=1)

    @property
    def wrong(self) -> np.ndarray:
        return self.predicted != self.labels


def other_files(folder: pathlib.Path, model: npeff.Model, taken: set[str]) -> Files:
    """All files of the set but those that were decomposed or read."""
    task = file_set.file_set(folder)
    windows, labels, shown = [], [], []
    for part in (task.decomposed, task.heldout):
        rows = np.array([i for i, texts in enumerate(part.display) if texts[0] not in taken])
        windows.append(part.examples[rows])
        labels.append(np.asarray(part.labels)[rows])
        shown += [part.display[i] for i in rows]
    found, logits = np.concatenate(windows), jax.jit(jax.vmap(model.logits_fn, (None, 0)))
    steps = [np.asarray(logits(model.params, found[i : i + 50])) for i in range(0, len(found), 50)]
    return Files(found, np.concatenate(labels), np.concatenate(steps), shown)


def cards(
    names: tuple[str, ...], coefficients: np.ndarray, labels: np.ndarray, logits: np.ndarray, shown: list
) -> list:
    """For each component its share of all coefficients, and types, pairs and names of its top files."""
    found = []
    likely = np.argsort(-logits, axis=1)[:, :2]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    sure = (p / p.sum(axis=1, keepdims=True)).max(axis=1)
    for j, column in enumerate(coefficients.T):
        top = np.argsort(-column, kind="stable")[:16]
        pairs = collections.Counter(" or ".join(sorted(names[k] for k in likely[i])) for i in top)
        found.append(
            {
                "component": j,
                "share": float(column.sum() / coefficients.sum()),
                "types": dict(collections.Counter(names[labels[i]] for i in top).most_common(6)),
                "pairs": dict(pairs.most_common(4)),
                "wrong": int((likely[top, 0] != labels[top]).sum()),
                "probability": [round(float(x), 3) for x in np.quantile(sure[top], [0, 0.5, 1])],
                "files": [shown[i][0] for i in top[:6]],
            }
        )
    return found


def groups(names: tuple[str, ...], files: Files, coefficients: np.ndarray, usual: np.ndarray) -> list[dict[str, Any]]:
    """Wrong predictions by label and prediction, with the component that stands out most among each group's files."""
    pairs = collections.Counter(zip(files.labels.tolist(), files.predicted.tolist(), strict=True))
    found = []
    for (label, predicted), count in pairs.most_common():
        if count < 4:
            break
        own = coefficients[(files.labels == label) & (files.predicted == predicted)]
        j = int(np.argmax(own.mean(axis=0)))
        found.append(
            {
                "label": names[label],
                "predicted": names[predicted],
                "files": count,
                "component": j,
                "largest in": int((own.argmax(axis=1) == j).sum()),
                "mean coefficient": float(own[:, j].mean()),
                "usually": float(usual[:, j].mean()),
            }
        )
    return found


def some_of(files: Files, pair: tuple[int, int], n_others: int, random: np.random.Generator) -> Files:
    """All files of a pair of types, and so many of others."""
    own = np.isin(files.labels, pair)
    others = random.choice(np.flatnonzero(~own), min(n_others, int((~own).sum())), replace=False)
    return files[np.sort(np.concatenate([np.flatnonzero(own), others]))]


def mend(
    model: npeff.Model, decomposition: npeff.Decomposition, candidates: list[int], choosing: Files, reporting: Files,
    pair: tuple[int, int], rows: Any,
) -> dict[str, Any]:  # fmt: skip
    """Choose component, sign and norm on one half, and report on the other, beside random directions."""
    directions = list(component_directions(model, decomposition, candidates))
    random = np.random.default_rng(0)
    here = some_of(choosing, pair, OTHERS["choosing"], random)
    # `find_repairs` wants examples that report as well: here they are the other half's files of the pair.
    there = reporting[np.isin(reporting.labels, pair)]
    both = np.concatenate([here.windows, there.windows])
    labels, chooses = np.concatenate([here.labels, there.labels]), np.arange(len(both)) < len(here.labels)
    tried = []
    for norm in NORMS:
        found = find_repairs(model, directions, both, labels, choosing=chooses, norm=norm, batch_size=64)
        for k, j in enumerate(candidates):
            sign, change = int(found.sign[k]), float(found.chosen_change[k])
            tried.append({"component": j, "norm": norm, "sign": sign, "where chosen": change})
    best = max(tried, key=lambda one: one["where chosen"])
    direction = directions[candidates.index(best["component"])]
    size = best["sign"] * best["norm"]
    moves = {"repair": jax.tree.map(lambda leaf: size * leaf, direction)}
    passes, reporting = npeff.Passes(batch_size=64), some_of(reporting, pair, OTHERS["reporting"], random)
    masks = {f"{name} files": reporting.labels == k for name, k in zip(PAIR, pair, strict=True)}
    masks["other files"] = ~np.isin(reporting.labels, pair)
    table = compare_moves(model, moves, reporting.windows, reporting.labels, groups=masks, passes=passes)
    drawn = []
    for _ in range(N_RANDOM):
        vector = np.asarray(rows.T @ random.normal(size=rows.shape[0]))
        drawn.append(model.space.unravel(np.asarray(vector / np.linalg.norm(vector), np.float32)))
    null = find_repairs(model, drawn, both, labels, choosing=chooses, norm=best["norm"], batch_size=64)
    return {
        "tried": tried,
        "chosen": best,
        "groups": list(table.groups),
        "sizes": list(table.sizes),
        "before": table.before.tolist(),
        "change": table.change[0].tolist(),
        "interval": table.interval[0].tolist(),
        "kl": table.kl[0].tolist(),
        "random directions, change where chosen": null.chosen_change.tolist(),
        "random directions, change of the pair's files that report": null.change.tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--components", type=int, default=24)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("findings.json"))
    options = parser.parse_args()
    task, *sides = rival_problems.file_pefs(options.folder)
    model, names = task.model, task.model.label_names or ()
    decomposition = npeff.decompose(sides[0], options.components, progress=False)
    fit = npeff.fit_coefficients(decomposition, sides[1])
    usual = np.concatenate([np.asarray(decomposition.coefficients), np.asarray(fit.coefficients)])
    labels, logits = (np.concatenate([np.asarray(getattr(s, what)) for s in sides]) for what in ("labels", "logits"))
    shown = [*task.decomposed.display, *task.heldout.display]
    record: dict[str, Any] = {"files": task.digest, "loss": decomposition.loss, "held-out loss": fit.loss}
    record["cards"] = cards(names, usual, labels, logits, shown)

    others = other_files(options.folder, model, {texts[0] for texts in shown})
    chooses = np.random.default_rng(0).permutation(len(others.labels)) < len(others.labels) // 2
    preset = npeff.tasks.presets.FILES
    wrong = {}
    for name, half in (("choosing", others[chooses]), ("reporting", others[~chooses])):
        wrong[name] = (half, half[half.wrong])
        record[name] = {"files": len(half.labels), "wrong": int(half.wrong.sum())}
    pefs = {
        name: npeff.compute_pefs(
            model, errors.windows, preset.representation, labels=errors.labels, keep=preset.keep, progress=False,
            path=options.folder / f"pefs-wrong-{name}", on_existing="resume",
        )
        for name, (_, errors) in wrong.items()
    }  # fmt: skip
    expanded = npeff.expand(decomposition, pefs["choosing"], N_NEW, progress=False)
    everyone = np.concatenate([npeff.fit_coefficients(expanded, side).coefficients for side in sides])
    record["groups"] = {
        name: groups(names, errors, np.asarray(npeff.fit_coefficients(expanded, pefs[name]).coefficients), everyone)
        for name, (_, errors) in wrong.items()
    }
    a, b = (names.index(name) for name in PAIR)
    errors = wrong["choosing"][1]
    own = np.asarray(expanded.coefficients)[(errors.labels == a) & (errors.predicted == b)]
    candidates = sorted(np.argsort(-own.mean(axis=0))[:N_CANDIDATES].tolist())
    halves = (half for half, _ in wrong.values())
    record["repair"] = mend(model, expanded, candidates, *halves, (a, b), sides[0].to_scipy())
    options.out.write_text(json.dumps(record, indent=1))
    print(
        json.dumps({key: record[key] for key in ("loss", "held-out loss", "choosing", "reporting", "repair")}, indent=1)
    )


if __name__ == "__main__":
    main()
