"""``npeff repair``: a move in the span of components that repairs wrong predictions, measured on other examples."""

from pathlib import Path

import numpy as np

from npeff_jax.cli._options import Explained, Flag, Ints
from npeff_jax.cli._record import stage


@stage
def repair(
    explained: Explained,
    decomposition: Path,
    out: Path,
    choosing: float = 0.4,
    components: Ints = (),
    nats: float = 0.01,
    ridge: float = 0.1,
    steps: int = 4,
    seed: int = 0,
    overwrite: Flag = False,
) -> None:
    """Find a move in the span of components that repairs wrong predictions, and measure it on other examples.

    The loss gradient of wrongly predicted examples determines sign, size and combination; a KL budget limits the change
    of correct predictions. The file contains the move, its weights and the changes of accuracy.

    Args:
        explained: the model, and labelled examples that were not decomposed.
        decomposition: low-rank components, from "npeff decompose" or, better, "npeff expand --only-wrong".
        out: .npz file to write.
        choosing: fraction of the examples that choose the move; the others measure its effect.
        components: components to combine; by default all.
        nats: mean KL allowed on correctly predicted examples, in nats.
        ridge: ridge of the combination; larger values distribute the move over more components.
        steps: number of steps, each with new derivatives.
        seed: seed of the split.
        overwrite: replace existing results.
    """
    import npeff_jax

    model, data = explained.load()
    if data.labels is None:
        raise ValueError(
            "a repair needs labelled examples, but these have no labels; pass --label-column, or other examples"
        )
    found = npeff_jax.evaluation.repair(
        model,
        npeff_jax.load_decomposition(decomposition),
        data.examples,
        data.labels,
        choosing=choosing,
        components=list(components) or None,
        within=npeff_jax.perturbation.TrustRegion(nats=nats, steps=steps, ridge=ridge),
        seed=seed,
    )
    table = found.accuracy
    arrays = {
        "move": np.asarray(model.space.ravel(found.by.move)),
        "weights": found.by.weights,
        "components": found.components,
        "groups": np.array(table.groups),
        "before": table.before,
        "change": table.change[0],
        "interval": table.interval[0],
        "kl": table.kl[0],
    }
    beside = out.with_name(out.name + ".part.npz")
    np.savez_compressed(beside, **arrays)
    beside.replace(out)
    print(found)
