"""Repairs of a planted flaw along components, held against what anyone can do without them.

    python benchmarks/repairs.py [--fast] [--cache moves-cache] [--out repairs.jsonl]

Every method gives a direction from the examples that choose: wrong ones, and right ones whose predictions should stay.

best component        the component of errors and the sign that raise accuracy most; plain (±g), and after rejection
span of ...           `span_move`: sign, size and combination by the loss gradient, of the components of errors, of as
                      many other components, of as many random directions; down the loss of the wrong ones, or of all
one gradient step     down the loss of the wrong ones, or of all
fine-tune             Adam on the wrong ones until the KL of the right ones is 0.03 nats

On the examples that report all are scaled alike: to a mean KL of 0.03 nats on those that are predicted right, and to
the paper's norm of 0.3. The change of accuracy of all, of the misled and of the others is in points. Five splits of the
same held-out examples, of a model that no choice of these methods has seen.
"""

import functools
import os

import flawed_model
import jax
import numpy as np
from flawed_model import SPLITS, Stage, at_norm, fine_tune, random_directions, times
from ranges import Kept, print_ranges

from npeff_jax.evaluation import compare_moves, top_share
from npeff_jax.perturbation import TrustRegion, component_directions, loss_gradient, scale_to_kl, span_move

NATS, NORM = 0.03, 0.3
N_SPAN, N_SINGLE = 25, 8
"""Components that spans combine, and that are tried one by one: those with most errors among their top examples."""

N_WRONG, N_RIGHT, N_SINGLE_KL = 400, 600, 300
"""Examples of choosing ones, the same in every split, so that programs are compiled once."""


def directions_by_kind(given: Stage) -> dict[str, list[object]]:
    """Components of errors, plain and rejected, and others."""
    right = (given.predicted == given.heldout.labels)[: given.pefs.n_examples]
    share = top_share(given.fit.coefficients, ~right, n_top=16)
    order = np.argsort(-share, kind="stable")
    flawed, rest = order[share[order] >= 0.5][:N_SPAN], order[share[order] < 0.5]
    other = np.random.default_rng(0).permutation(rest)[: len(flawed)]
    print(
        f"{(share >= 0.5).sum()} of {len(share)} stand for errors; {len(flawed)} are combined, {N_SINGLE} tried alone"
    )
    found = {"errors": flawed, "other": other}
    made = {name: list(component_directions(given.model, given.expanded, which)) for name, which in found.items()}
    made["rejected"] = list(component_directions(given.model, given.expanded, flawed[:N_SINGLE], reject_below=0.35))
    return made


def moves_of(given: Stage, made: dict[str, list[object]], split: int) -> dict[str, dict[str, object]]:
    """Moves of every method, by how it is scaled, from the examples that choose."""
    model, data = given.model, given.heldout
    right, chooses = given.predicted == data.labels, given.chooses(split)
    wrong = data.subset(np.flatnonzero(chooses & ~right)[:N_WRONG])
    others = data.subset(np.flatnonzero(chooses & right)[:N_RIGHT]).examples
    part = data.subset(np.flatnonzero(chooses))
    within = TrustRegion(NATS)

    def best(directions: list[object], size: str) -> object:
        both = [times(sign, d) for d in directions[:N_SINGLE] for sign in (1.0, -1.0)]
        held = others[:N_SINGLE_KL]
        moves = [at_norm(model, d, NORM) if size == "norm" else scale_to_kl(model, d, held, NATS)[0] for d in both]
        named = {str(k): move for k, move in enumerate(moves)}
        change = compare_moves(model, named, part.examples, part.labels).change[:, 0]
        return moves[int(np.argmax(change))]

    spans = {
        "components of errors, loss of the wrong": (made["errors"], wrong),
        "components of errors, loss of all": (made["errors"], part),
        "other components, loss of all": (made["other"], part),
        "random directions, loss of all": (random_directions(model, len(made["errors"]), split), part),
    }
    common = {
        f"span of {name}": span_move(model, directions, of.examples, of.labels, others, within=within).move
        for name, (directions, of) in spans.items()
    }
    for name, of in (("the wrong", wrong), ("all", part)):
        common[f"one gradient step, loss of {name}"] = times(-1.0, loss_gradient(model, of.examples, of.labels))
    common["fine-tune on the wrong"] = fine_tune(given, wrong, others, NATS)
    return {
        size: {
            "best component of errors": best(made["errors"], size),
            "best component of errors, rejected": best(made["rejected"], size),
            **common,
        }
        for size in ("KL", "norm")
    }


def one_split(given: Stage, made: dict[str, list[object]], split: int) -> list[dict]:
    """Every method, reported."""
    model, chooses = given.model, given.chooses(split)
    rest = given.heldout.subset(np.flatnonzero(~chooses))
    right, misled = (given.predicted == given.heldout.labels)[~chooses], given.misled[~chooses]
    groups = {"misled": misled, "others": ~misled, "right": right}
    held = rest.subset(np.flatnonzero(right)).examples
    records = []
    for size, moves in moves_of(given, made, split).items():
        scaled = {
            name: at_norm(model, move, NORM) if size == "norm" else scale_to_kl(model, move, held, NATS)[0]
            for name, move in moves.items()
        }
        table = compare_moves(model, scaled, rest.examples, rest.labels, groups=groups)
        for i, name in enumerate(table.names):
            change, interval = 100 * table.change[i], 100 * table.interval[i]
            records.append(
                {
                    "method": f"{name}, at {f'norm {NORM}' if size == 'norm' else f'{NATS} nats'}",
                    "split": split,
                    "all": float(change[0]),
                    "low": float(interval[0, 0]),
                    "high": float(interval[0, 1]),
                    "misled": float(change[1]),
                    "others": float(change[2]),
                    "KL of the right": float(table.kl[i, 3]),
                    "norm": float(table.norms[i]),
                }
            )
    return records


def main() -> None:
    options, sizes = flawed_model.parse(__doc__.splitlines()[0], "repairs.jsonl")
    given, kept = flawed_model.stage(sizes, options.cache), Kept(options.out)
    made, records = directions_by_kind(given), []
    for split in SPLITS[:1] if options.fast else SPLITS:
        key = {"part": "repairs", "fast": options.fast, "split": split}
        records += kept.once(key, functools.partial(one_split, given, made, split))
    print_ranges("repairs", records, "method")
    seconds = kept.seconds(part="repairs", fast=options.fast)
    print(f"\n{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {seconds:.0f} s of CPU; written to {options.out}")


if __name__ == "__main__":
    main()
