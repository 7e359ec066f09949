"""``npeff plan``: what it will cost, and what it will lose, before anything expensive is run."""

from pathlib import Path

from npeff_jax.cli._options import Explained, Fishers, mesh_of


def plan(
    explained: Explained,
    fishers: Fishers,
    keep: tuple[int, ...] = (),
    n_sampled: int = 8,
    max_error: float = 0.25,
    seed: int = 0,
    all_devices: bool = False,
    figure: Path | None = None,
) -> None:
    """Measure on a few examples how long PEFs will take, how large they get, and what each choice of --keep loses.

    Writes nothing but the figure. Next: npeff pefs, with the --keep suggested, or one whose error you can live with.

    Args:
        explained: what is explained.
        fishers: how a Fisher is represented.
        keep: choices to compare; a series by default.
        n_sampled: examples to measure.
        max_error: the median error of a sparsified Fisher that the suggested --keep may have.
        seed: of their choice.
        all_devices: use every device rather than the first.
        figure: also draw what is kept and lost against --keep, into this file.
    """
    import npeff_jax

    found = npeff_jax.plan(
        explained.load_model(),
        explained.load_examples().examples,
        fishers.representation(),
        keep=keep or None,
        n_sampled=n_sampled,
        max_error=max_error,
        seed=seed,
        mesh=mesh_of(all_devices),
    )
    print(found)
    if figure is not None:
        found.figure().savefig(figure)
