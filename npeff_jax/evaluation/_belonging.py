"""Whether model, decomposition, PEFs, examples and coefficients are of one another."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax._checks import count_examples, slice_examples
from npeff_jax._types import Examples, LogitsFn, PyTree
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.pefs import Pefs
from npeff_jax.perturbation import check_decomposition_of

_PROBED = 32
"""Examples whose logits are compared with those in the PEFs."""


def check_belong_together(
    model: Model, decomposition: Decomposition, pefs: Pefs, examples: Examples, fit: Any = None
) -> None:
    """Raise unless all of them are of one model, and PEFs, examples and coefficients of the same examples in one order.

    Raises:
        TypeError: an argument of another kind.
        ValueError: they do not belong together; says which.
    """
    check_decomposition_of(model, decomposition)
    if not isinstance(pefs, Pefs):
        raise TypeError(f"pefs is a {type(pefs).__name__}; expected what compute_pefs or load_pefs returns")
    if not hasattr(fit, "coefficients"):
        raise TypeError(
            f"fit is a {type(fit).__name__}; expected what fit_coefficients returns, or the decomposition itself for "
            "the examples it was found in"
        )
    if pefs.schema.model != model.fingerprint:
        raise ValueError(
            f"the PEFs are of a model with fingerprint {pefs.schema.model}, this one has {model.fingerprint}; compute "
            "them for this model"
        )
    n, n_pefs, n_fit = count_examples(examples), pefs.n_examples, len(fit.coefficients)
    if not n == n_pefs == n_fit:
        raise ValueError(
            f"{n} examples, PEFs of {n_pefs} and coefficients of {n_fit}; pass the same examples in all three"
        )
    if fit.coefficients.shape[1] != decomposition.n_components:
        raise ValueError(
            f"the coefficients have {fit.coefficients.shape[1]} components, the decomposition "
            f"{decomposition.n_components}; fit them to this decomposition"
        )
    check_examples_of(model, pefs, examples)


def check_examples_of(model: Model, pefs: Pefs, examples: Examples) -> None:
    """Raise unless the model's logits on some of the examples are those that the PEFs hold.

    Raises:
        ValueError: an example has other logits: the examples are others, or in another order.
    """
    usable = np.flatnonzero(np.isfinite(np.asarray(pefs.logits, np.float32)).all(axis=1))
    if not usable.size:
        return
    rows = usable[np.unique(np.linspace(0, usable.size - 1, min(_PROBED, usable.size)).astype(int))]
    found = _logits(model.params, slice_examples(examples, rows), model.logits_fn)
    kept = np.asarray(pefs.logits, np.float64)[rows]
    # Programs that were compiled for other batches differ in rounding, by far less than the root of its unit.
    allowed = np.sqrt(float(jnp.finfo(found.dtype).eps)) * max(float(np.abs(kept).max()), 1e-30)
    apart = np.abs(np.asarray(found, np.float64) - kept).max(axis=1)
    if not (apart <= allowed).all():
        example = int(rows[int(np.argmax(np.nan_to_num(apart, nan=np.inf)))])
        raise ValueError(
            f"the model's logits on example {example} are not those of example {example} in the PEFs; pass the very "
            "examples of the PEFs, in their order"
        )


@functools.partial(jax.jit, static_argnums=2)
def _logits(params: PyTree, batch: Examples, logits_fn: LogitsFn) -> jax.Array:
    return jax.vmap(logits_fn, (None, 0))(params, batch)
