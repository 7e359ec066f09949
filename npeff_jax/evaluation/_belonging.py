"""Check that model, decomposition, PEFs, examples and coefficients belong together."""

from typing import Any

import numpy as np

from npeff_jax._examples import count_examples
from npeff_jax._identity import FISHERS, check_examples, check_same
from npeff_jax._types import Examples
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.pefs import Pefs
from npeff_jax.perturbation import check_decomposition_of


def check_belong_together(
    model: Model, decomposition: Decomposition, pefs: Pefs, examples: Examples, fit: Any = None
) -> None:
    """Raise unless all arguments are of the same model, and PEFs and coefficients are those of the examples.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: the arguments do not belong together; the message names which.
    """
    check_decomposition_of(model, decomposition)
    if not isinstance(pefs, Pefs):
        raise TypeError(f"pefs is a {type(pefs).__name__}; expected what compute_pefs or load_pefs returns")
    if not hasattr(fit, "coefficients"):
        raise TypeError(
            f"fit is a {type(fit).__name__}; expected what fit_coefficients returns, or the decomposition itself for "
            "the examples it was found in"
        )
    check_same(
        "the decomposition",
        decomposition.schema.identity,
        "the PEFs",
        pefs.schema.identity,
        FISHERS,
        "compute PEFs of the same kind, for this model",
    )
    n, n_pefs, n_fit = count_examples(examples), pefs.n_examples, len(fit.coefficients)
    if not n == n_pefs == n_fit:
        raise ValueError(
            f"{n} examples, PEFs of {n_pefs} and coefficients of {n_fit}; pass the same examples in all three"
        )
    if fit.coefficients.shape[1] != decomposition.n_components:
        raise ValueError(
            f"the coefficients have {fit.coefficients.shape[1]} components, but the decomposition has "
            f"{decomposition.n_components}; fit them to this decomposition"
        )
    check_examples("the PEFs", pefs.schema.identity, np.asarray(pefs.logits), model, examples)
