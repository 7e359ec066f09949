"""Verification of a model against PyTorch: logits, and the gradient of each logit, by a plain autograd loop."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax._checks import listing
from npeff_jax._examples import count_examples, first_example, slice_examples
from npeff_jax._html import facts_html, table_html
from npeff_jax._types import Example, Examples, PyTree
from npeff_jax.models._model import Model
from npeff_jax.models._torch_env import import_torch, to_numpy
from npeff_jax.models._torch_function import Forward, default_forward

Translate = Callable[[Mapping[str, np.ndarray]], PyTree]
"""Function from arrays by the reference's parameter names to a pytree shaped like the model's parameters."""


@dataclasses.dataclass(frozen=True, eq=False)
class Verification:
    """Differences between a model and its PyTorch reference.

    Attributes:
        logit_errors: (n,), largest difference of an example's logits, relative to the largest logit.
        row_errors: (n, c), relative L2 error of each gradient row of each example.
        parameter_errors: per parameter, the largest L2 norm of its part of a row's difference, relative to the row;
            largest first. It locates a fault.
        spread: difference between the logits of different examples, relative to the largest. Near 0, the output hardly
            depends on the input, and agreement says little.
        tolerance: tolerance of `passed`.
        rounding: largest errors of PyTorch itself, in logits and rows, if compared with float64.
    """

    logit_errors: np.ndarray
    row_errors: np.ndarray
    parameter_errors: Mapping[str, float]
    spread: float
    tolerance: float
    rounding: tuple[float, float] | None = None

    @property
    def passed(self) -> bool:
        """Whether every error is at most the tolerance, or at most four times PyTorch's own rounding error if known.

        The factor allows for the spread of the largest of a few rounding errors. Errors above a hundred times the
        tolerance never pass.
        """
        own = self.rounding or (0.0, 0.0)
        allowed = [max(self.tolerance, min(4 * least, 100 * self.tolerance)) for least in own]
        return all(bool(np.all(e <= most)) for e, most in zip((self.logit_errors, self.row_errors), allowed))

    def __str__(self) -> str:
        lines = [f"{name:<27}{value}" for name, value in self._facts()]
        worst = [f"  {error:.1e}  {name}" for name, error in list(self.parameter_errors.items())[:5]]
        return "\n".join([*lines, "parameters that differ most, in parts of a row's norm:", *worst])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [(name, f"{error:.1e}") for name, error in self.parameter_errors.items()]
        return facts_html("Against PyTorch", self._facts(), table_html(("parameter", "part of a row's error"), rows))

    def _facts(self) -> list[tuple[str, str]]:
        (n, c), own = self.row_errors.shape, self.rounding
        return [
            ("verdict", f"{'agrees' if self.passed else 'DIFFERS'} (to {self.tolerance:.0e})"),
            ("logits", f"{_most(self.logit_errors):.1e} at most, {np.median(self.logit_errors):.1e} median"),
            ("gradient rows", f"{_most(self.row_errors):.1e} at most, {np.median(self.row_errors):.1e} median"),
            ("PyTorch's own rounding", "not measured" if own is None else f"{own[0]:.1e}, gradient rows {own[1]:.1e}"),
            ("compared", f"{n} examples, {c} rows each"),
            ("examples' logits differ by", f"{self.spread:.1e} of the largest"),
        ]


def verify(
    model: Model,
    reference: Any,
    examples: Examples,
    *,
    forward: Forward | None = None,
    translate: Translate | None = None,
    exact: Any = None,
    max_rows: int = 8,
    tolerance: float = 1e-5,
) -> Verification:
    """Compare the logits and per-example gradient rows of a model with those of a PyTorch module.

    The rows are those of the Jacobian of the logits over the explained parameters, from which PEFs are computed.

    Args:
        model: a model from `from_torch` or `from_huggingface`, or written by hand.
        reference: the PyTorch module in evaluation mode, with the same weights.
        examples: a few examples of the model.
        forward: ``(module, batch) -> logits`` for the reference, as for `from_torch`.
        translate: function from the reference's parameters to the model's, if their names or layouts differ. It must be
            linear, because gradients are passed through it.
        exact: the reference in float64, ``copy.deepcopy(module).double()``. Errors are then measured from it, and those
            of the reference are reported beside them as the accuracy of float32.
        max_rows: maximum number of rows per example, those of the likeliest classes.
        tolerance: tolerance of `Verification.passed`. In float32, a few layers give errors of 1e-6 to 1e-5.

    Returns:
        The errors, which print as a table.

    Raises:
        ValueError: the reference lacks parameters of the model, or has logits of another shape.
    """
    import_torch()
    n = count_examples(examples)
    if n == 0:
        raise ValueError("no examples to verify on; pass at least one")
    ours = jax.jit(lambda params, example, classes: _ours(model, params, example, classes))
    names = [parameter.name for parameter in model.space.layout.parameters]
    found, own, logits = [], [], []
    for i in range(n):
        example = first_example(slice_examples(examples, slice(i, i + 1)))
        theirs = _theirs(model, reference, example, forward, translate, max_rows)
        truth = (
            theirs if exact is None else _theirs(model, exact, example, forward, translate, max_rows, theirs.classes)
        )
        with jax.default_matmul_precision("highest"):
            made = jax.device_get(ours(model.params, example, theirs.classes))
        if made[0].shape != truth.logits.shape:
            raise ValueError(f"the model has logits of shape {made[0].shape}, the reference {truth.logits.shape}")
        rows = [[leaf[j].astype(np.float64) for leaf in made[1]] for j in range(len(theirs.classes))]
        found.append(_errors(_Side(made[0].astype(np.float64), theirs.classes, rows), truth))
        own.append(_errors(theirs, truth))
        logits.append(truth.logits)
    worst = np.max([parts for _, _, parts in found], axis=(0, 1))
    order = np.argsort(-worst)
    rounding = (max(error for error, _, _ in own), max(float(np.max(rows)) for _, rows, _ in own))
    return Verification(
        np.array([error for error, _, _ in found]),
        np.array([rows for _, rows, _ in found]),
        {names[i]: float(worst[i]) for i in order},
        float(np.std(logits, axis=0).max() / max(_peak(np.array(logits)), np.finfo(float).tiny)),
        tolerance,
        None if exact is None else rounding,
    )


@dataclasses.dataclass(frozen=True)
class _Side:
    """Logits (C,) of one example and, for some classes, their gradients per explained parameter, in float64."""

    logits: np.ndarray
    classes: np.ndarray
    rows: list[list[np.ndarray]]


def _errors(side: _Side, truth: _Side) -> tuple[float, list[float], np.ndarray]:
    """Return the error of the logits, of each row, and of each parameter's part of each row (c, parameters)."""
    differences = [
        [_norm(ours - theirs) for ours, theirs in zip(a, b, strict=True)]
        for a, b in zip(side.rows, truth.rows, strict=True)
    ]
    sizes = [_norm(np.array([_norm(leaf) for leaf in row])) for row in truth.rows]
    parts = np.array([[_relative(d, size) for d in row] for row, size in zip(differences, sizes)])
    whole = [_relative(_norm(np.array(row)), size) for row, size in zip(differences, sizes)]
    return _relative(_peak(side.logits - truth.logits), _peak(truth.logits)), whole, parts


def _theirs(
    model: Model,
    module: Any,
    example: Example,
    forward: Forward | None,
    translate: Translate | None,
    max_rows: int,
    classes: np.ndarray | None = None,
) -> _Side:
    """Compute PyTorch's logits and gradients, one backward pass per class, for the given or the likeliest classes."""
    import torch

    weights = dict(module.named_parameters(remove_duplicate=False))
    frozen = [weight for weight in weights.values() if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)  # explained parameters may be frozen in PyTorch
        with torch.enable_grad():
            logits = _their_logits(module, example, forward)
            if classes is None:
                classes = to_numpy(logits.argsort(descending=True)[:max_rows]).astype(np.int32)
            rows = [_their_row(model, weights, logits[int(c)], translate) for c in classes]
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    return _Side(to_numpy(logits).astype(np.float64), classes, rows)


def _ours(
    model: Model, params: PyTree, example: Example, classes: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Compute the model's logits (C,), and the rows (c, *shape) of the Jacobian per explained parameter."""
    logits, pull = jax.vjp(
        lambda selected: model.selected_logits(selected, params, example), model.space.select(params)
    )
    one_hot = jax.nn.one_hot(classes, logits.size, dtype=logits.dtype)
    (rows,) = jax.vmap(pull)(one_hot)
    return logits.astype(jnp.float32 if logits.dtype == jnp.bfloat16 else logits.dtype), rows


def _their_logits(reference: Any, example: Example, forward: Forward | None) -> Any:
    import torch

    def tensor(leaf: Any) -> Any:
        made = torch.as_tensor(np.asarray(leaf))
        return (made if made.is_floating_point() or made.dtype == torch.bool else made.long())[None]

    output = (forward or default_forward)(reference, jax.tree.map(tensor, example))
    logits = output if isinstance(output, torch.Tensor) else output.logits
    if logits.ndim != 2 or logits.shape[0] != 1:
        got = tuple(logits.shape)
        raise ValueError(
            f"the reference returned logits of shape {got} for a batch of 1; expected (1, C): pass forward="
        )
    return logits[0]


def _their_row(model: Model, weights: Mapping[str, Any], logit: Any, translate: Translate | None) -> list[np.ndarray]:
    """Compute the gradient of one logit as a float64 array per explained parameter of the model."""
    import torch

    names = [p.name for p in model.space.layout.parameters] if translate is None else list(weights)
    missing = [name for name in names if name not in weights]
    if missing:
        raise ValueError(
            f"the reference has no parameters {listing(missing)}; pass translate=, from its names to the model's"
        )
    unique = {id(weights[name]): weights[name] for name in names}
    found = torch.autograd.grad(logit, list(unique.values()), retain_graph=True, allow_unused=True)
    gradients = {
        key: np.zeros(weight.shape) if gradient is None else to_numpy(gradient).astype(np.float64)
        for (key, weight), gradient in zip(unique.items(), found, strict=True)
    }
    named = {name: gradients[id(weights[name])] for name in names}
    if translate is None:
        return list(named.values())
    return [np.asarray(leaf, np.float64) for leaf in model.space.select(translate(named))]


def _norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array.ravel()))


def _peak(array: np.ndarray) -> float:
    return float(np.abs(array).max())


def _relative(difference: float, size: float) -> float:
    """Return ``difference / size``; infinite for a non-zero difference from zero."""
    if size > 0:
        return float(difference / size)
    return 0.0 if difference == 0 else float("inf")


def _most(errors: np.ndarray) -> float:
    return float("nan") if np.isnan(errors).any() else float(errors.max())
