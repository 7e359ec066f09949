"""``npeff verify``: compare a model with PyTorch before explaining it."""

import copy
from pathlib import Path

import tyro

from npeff_jax.cli._source import is_checkpoint, load_examples, load_factory, load_model


def verify(
    model: tyro.conf.Positional[str],
    examples: str | None = None,
    part: str | None = None,
    reference: str | None = None,
    n_examples: int = 3,
    seed: int = 0,
    tolerance: float = 1e-5,
    exact: bool = False,
) -> None:
    """Compare a model's logits and gradient rows with PyTorch's on a few examples. Exit code 1 if they differ.

    Writes nothing. Next: npeff plan.

    Args:
        model: a Hugging Face directory (a checkpoint or a PEFT adapter), or package.module:factory, as for "npeff
            pefs".
        examples: as for "npeff pefs"; for a directory, by default random ones.
        part: start:stop, the part of the examples to use.
        reference: package.module:factory or file.py:factory, a function that returns the torch.nn.Module to compare a
            model given as a factory with.
        n_examples: number of random examples, for a directory.
        seed: seed of random examples.
        tolerance: tolerance of relative errors.
        exact: measure errors from PyTorch in float64, and report PyTorch's own; needs memory for two more copies.
    """
    from npeff_jax.models import verify as verify_model
    from npeff_jax.models import verify_checkpoint

    found = None if examples is None else load_examples(examples, part).examples
    if is_checkpoint(model):
        if reference is not None:
            raise ValueError("--reference goes with a model given as a factory; a directory is its own reference")
        result = verify_checkpoint(
            Path(model), found, n_examples=n_examples, seed=seed, tolerance=tolerance, in_float64=exact
        )
    else:
        if reference is None or found is None:
            raise ValueError(f"{model} is not a Hugging Face directory; pass --reference and --examples to compare on")
        module = load_factory("--reference", reference)()
        truth = copy.deepcopy(module).double() if exact else None
        result = verify_model(load_model(model), module, found, exact=truth, tolerance=tolerance)
    print(result)
    if not result.passed:
        raise RuntimeError("the model differs from PyTorch by more than the tolerance")
