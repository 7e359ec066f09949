"""``npeff plan``: what it will cost, and what it will lose, before anything expensive is run."""

from npeff_jax.cli._options import Explained, Fishers, mesh_of


def plan(
    explained: Explained,
    fishers: Fishers,
    keep: tuple[int, ...] = (),
    n_sampled: int = 8,
    seed: int = 0,
    all_devices: bool = False,
) -> None:
    """Measure on a few examples how long PEFs will take, how large they get, and what each choice of --keep loses.

    Writes nothing. Next: npeff pefs, with the smallest --keep whose error you can live with.

    Args:
        explained: what is explained.
        fishers: how a Fisher is represented.
        keep: choices to compare; a series by default.
        n_sampled: examples to measure.
        seed: of their choice.
        all_devices: use every device rather than the first.
    """
    import npeff_jax

    found = npeff_jax.plan(
        explained.load_model(),
        explained.load_examples().examples,
        fishers.representation(),
        keep=keep or None,
        n_sampled=n_sampled,
        seed=seed,
        mesh=mesh_of(all_devices),
    )
    print(found)
