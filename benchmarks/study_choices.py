"""How many entries (K) and how many components (r)? What the guide's rules of thumb rest on, on the digits network.

    python benchmarks/study_choices.py [--n 600] [--seeds 2] [--out study_choices.json]

Components found in sparsified PEFs are judged on held-out images' whole PEFs, of which nothing is dropped, so that rows
of one table compare: the loss there, the KL ratio over its null (a ratio of medians), and how many components another
seed finds again (cosine of 0.8 and more).
"""

import argparse
import json
import pathlib
import platform

import jax
import numpy as np

import npeff_jax as npeff

KEEPS = (64, 256, 1024, 2048, None)
RANKS = (4, 12, 24, 48)
FIXED_KEEP, FIXED_RANK = 2048, 24
QUIET = {"progress": False}


def judged(digits, pefs, whole, r: int, seeds: int) -> dict[str, float]:
    """Decompose with several seeds; the first is what is judged."""
    runs = [npeff.decompose(pefs, r, seed=seed, **QUIET) for seed in range(seeds)]
    fit = npeff.fit_coefficients(runs[0], whole)
    table = npeff.selectivity(
        digits.model, runs[0], whole, digits.heldout_images, fit=fit, n_top=16, norm=0.1, seed=0, **QUIET
    )
    again = np.mean([npeff.compare_runs(runs[0], other).forward >= 0.8 for other in runs[1:]])
    return {
        "loss": float(runs[0].history.loss[-1]),
        "heldout_loss": fit.loss,
        "kl_ratio": float(np.nanmedian(table.kl_ratio)),
        "null": float(np.nanmedian(table.null_kl_ratio)),
        "above_null": float(np.mean(table.kl_ratio > table.null_kl_ratio)),
        "found_again": float(again),
        "alike": float(np.mean(_largest_cosine(runs[0].pseudo_fishers) >= 0.8)),
    }


def _largest_cosine(G) -> np.ndarray:
    """Each component's largest |cos| with another one."""
    G = np.asarray(G[:], np.float64)
    norms = np.linalg.norm(G, axis=1)
    cosines = np.abs(G @ G.T) / np.maximum(np.outer(norms, norms), 1e-30)
    np.fill_diagonal(cosines, 0.0)
    return cosines.max(axis=1)


def main() -> None:
    """Measure both choices for both flavours, print tables, write a JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("study_choices.json"))
    options = parser.parse_args()

    digits = npeff.tasks.digits(**QUIET)
    rows = []
    for name, representation in (("LRM", npeff.LowRank()), ("D", npeff.Diagonal())):
        whole = npeff.compute_pefs(digits.model, digits.heldout_images, representation, keep=None, **QUIET)
        tried = [("K", keep, FIXED_RANK) for keep in KEEPS] + [("r", FIXED_KEEP, r) for r in RANKS]
        if name == "D":  # a diagonal PEF has no more entries than there are parameters, 1,418
            tried = [
                (what, keep if what == "K" else None, r)
                for what, keep, r in tried
                if keep is None or keep < 1418 or what == "r"
            ]
        kept = {}
        for what, keep, r in tried:
            if keep not in kept:
                images = digits.train_images[: options.n]
                kept[keep] = npeff.compute_pefs(digits.model, images, representation, keep=keep, **QUIET)
            row = {"flavour": name, "varied": what, "keep": keep, "r": r}
            row |= {
                "kept_energy": float(np.median(kept[keep].kept_energy)),
                "fisher_error": float(np.median(kept[keep].fisher_error)),
            }
            rows.append(row | judged(digits, kept[keep], whole, r, options.seeds))
            if len(rows) == 1:
                print(" ".join(f"{key:>12}" for key in rows[0]))
            print(
                " ".join(
                    f"{value:>12.4g}" if isinstance(value, float) else f"{value!s:>12}" for value in rows[-1].values()
                ),
                flush=True,
            )
    settings = {"n": options.n, "seeds": options.seeds, "jax": jax.__version__, "machine": platform.processor()}
    options.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
