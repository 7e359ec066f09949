"""Do the marks of a text point to the word that is known to matter? On the planted shortcut (npeff_jax.tasks.shortcut).

    python benchmarks/marked_words.py

The model is misled by a word that two sentences share. Of the component whose top examples it misleads most, the words
of each top example are ordered by four methods, and it is counted how often a shared word comes before the other nouns
and verbs. Where all of them are shared, that says nothing: these examples are left out. Chance is the share of shared
words.

The four: leaving a word out (the token "?" in its place) or replacing it by eight others of its kind, each measured by
what is lost of the component's effect (what `mark_examples` does), or by the KL divergence of the prediction.
"""

import jax
import numpy as np

import npeff_jax as npeff
from npeff_jax.tasks._shortcut import LABELS, LARGER

CONTENT = (1, 2, 4, 5)
"""Noun and verb of premise and hypothesis; 0 and 3 are "a" or "no"."""
ASK, N_OTHERS, N_TOP, R = 2, 8, 12, 24


def variants(pair: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(6, 1 + N_OTHERS, 7): for every word the pair without it, then with others of its kind."""
    kinds = (np.arange(2), np.arange(len(LARGER.nouns)) + 3, np.arange(len(LARGER.verbs)) + 3 + len(LARGER.nouns))
    made = np.tile(pair, (6, 1 + N_OTHERS, 1))
    for place in range(6):
        others = np.setdiff1d(kinds[place % 3], pair[[place % 3, place % 3 + 3]] if place % 3 else pair[[place]])
        made[place, :, place] = [ASK, *random.choice(others, N_OTHERS)]
    return made


def shared_words(pair: np.ndarray) -> list[int]:
    return [place for place in CONTENT if pair[place] == pair[(place + 3) % 6]]


def main() -> None:
    task = npeff.tasks.shortcut(n_train=12_000, n_heldout=900, steps=1200, progress=False)
    model, pairs = task.model, np.asarray(task.heldout.examples)
    pefs = npeff.compute_pefs(model, pairs, npeff.LowRank(), keep=8192, progress=False)
    misled = task.misled & (np.asarray(pefs.logits).argmax(1) == LABELS.index("entailment"))
    found = npeff.decompose(pefs, R, seed=0, progress=False)
    share = npeff.evaluation.top_share(found.coefficients, misled, n_top=N_TOP)
    component = int(np.argmax(share))
    print(f"component {component}: {share[component]:.0%} of its top {N_TOP} are misled, {misled.mean():.0%} of all")
    top = npeff.top_examples(found.coefficients, component, N_TOP)
    direction = npeff.component_direction(model, found, component)

    @jax.jit
    def effects(inputs):
        return jax.vmap(lambda x: jax.jvp(lambda p: model.logits_fn(p, x), (model.params,), (direction,)))(inputs)

    random, counts, told, chance = np.random.default_rng(0), {}, 0, 0.0
    for pair in pairs[top]:
        own = shared_words(pair)
        made = variants(pair, random)
        logits, moved = (np.asarray(a, np.float64) for a in effects(np.concatenate([pair[None], made.reshape(-1, 7)])))
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        S = np.diag(p[0]) - np.outer(p[0], p[0])
        lost = (1 - moved[1:] @ S @ moved[0] / (moved[0] @ S @ moved[0])).reshape(6, -1)
        kl = (p[0] * np.log(p[0] / p[1:])).sum(1).reshape(6, -1)
        print(" ".join(f"{value:6.2f}" for value in lost[:, 0]), "  shared:", own)
        if len(own) in (0, len(CONTENT)):
            continue
        told, chance = told + 1, chance + len(own) / len(CONTENT)
        for name, values in {
            "effect, word left out": lost[:, 0],
            "effect, word replaced": lost[:, 1:].mean(1),
            "prediction, word left out": kl[:, 0],
            "prediction, word replaced": kl[:, 1:].mean(1),
        }.items():
            first = max(CONTENT, key=lambda place, values=values: values[place])
            counts.setdefault(name, []).append((first in own, int(np.argmax(values)) in (0, 3)))
    print(
        f"\n| method | a shared word first among nouns and verbs, of {told} (chance {chance:.1f}) | a, no before all |"
    )
    print("|---|---|---|")
    for name, hits in counts.items():
        print(f"| {name} | {sum(h for h, _ in hits)} | {sum(q for _, q in hits)} |")


if __name__ == "__main__":
    main()
