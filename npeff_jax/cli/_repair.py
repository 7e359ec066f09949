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

    The loss gradient of the choosing examples determines sign, size and combination; a KL budget limits the change of
    correct predictions. The file contains the move, its weights and the changes of accuracy.

    Args:
        explained: what is explained: the model, and labelled examples that no component was found in.
        decomposition: low-rank components, from "npeff decompose" or, better, "npeff expand --only-wrong".
        out: .npz file to write.
        choosing: fraction of the examples that chooses the move; the others report.
        components: to combine; all by default.
        nats: mean KL on rightly predicted examples that the move may cost.
        ridge: of the combination; more trusts single components less.
        steps: how often derivatives are taken anew on the way.
        seed: of the split.
        overwrite: replace what is there.
    """
    import npeff_jax

    model, data = explained.load()
    if data.labels is None:
        raise ValueError("a repair needs labelled examples, and these have no labels; pass --label-column or others")
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
