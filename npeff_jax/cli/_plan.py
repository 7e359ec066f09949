"""``npeff plan``: what it will cost, and what it will lose, before anything expensive is run."""

from npeff_jax.cli._options import Flavour, mesh_of, representation_of
from npeff_jax.cli._source import load_examples, load_model
from npeff_jax.pefs import Rows


def plan(
    model: str,
    examples: str,
    flavour: Flavour = Flavour.LOW_RANK,
    keep: tuple[int, ...] = (),
    part: str | None = None,
    mask: tuple[str, ...] = (),
    rows: Rows = Rows.PRINCIPAL,
    min_probability: float = 0.0,
    max_rows: int | None = None,
    min_trace: float | None = None,
    n_samples: int | None = None,
    n_sampled: int = 8,
    seed: int = 0,
    all_devices: bool = False,
) -> None:
    """Measure on a few examples how long PEFs will take, how large they get, and what each choice of --keep loses.

    Writes nothing. Next: npeff pefs, with the smallest --keep whose error you can live with.

    Args:
        model: package.module:factory or file.py:factory (a function that returns a Model), or a Hugging Face directory.
        examples: package.module:factory (returns examples, or examples, labels and what to display), or an .npz.
        flavour: as for "npeff pefs".
        keep: choices to compare; a series by default.
        part: start:stop, the part of the examples to use.
        mask: globs over parameter paths to explain.
        rows: as for "npeff pefs".
        min_probability: as for "npeff pefs".
        max_rows: as for "npeff pefs".
        min_trace: as for "npeff pefs".
        n_samples: as for "npeff pefs".
        n_sampled: examples to measure.
        seed: of their choice.
        all_devices: use every device rather than the first.
    """
    import npeff_jax

    found = npeff_jax.plan(
        load_model(model, mask),
        load_examples(examples, part).examples,
        representation_of(flavour, rows, min_probability, max_rows, min_trace, n_samples, 0),
        keep=keep or None,
        n_sampled=n_sampled,
        seed=seed,
        mesh=mesh_of(all_devices),
    )
    print(found)
