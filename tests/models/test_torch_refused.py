"""PyTorch modules that cannot be explained: each is refused by a sentence."""

import jax.numpy as jnp
import numpy as np
import pytest
from torch_modules import TOKENS, VECTORS, Bend, build

import npeff_jax as npeff

torch = pytest.importorskip("torch")
pytest.importorskip("torchax")
nn, functional = torch.nn, torch.nn.functional


@pytest.mark.parametrize(
    ("bend", "message"),
    [
        (lambda module, x: functional.dropout(x, 0.5), "random numbers"),
        (lambda module, x: x * torch.rand(()), "random numbers"),
        (lambda module, x: x * torch.rand((), device="cpu"), "random numbers"),
        (lambda module, x: x + torch.empty_like(x).exponential_(), "random numbers"),
        (lambda module, x: x * float(np.random.rand()), "random numbers"),  # noqa: NPY002
        (lambda module, x: x if x.sum() > 0 else -x, r"branches on.*test_torch_refused.py, line \d+.*torch.where"),
        (lambda module, x: x * x.sum().item(), "branches on.*values of its inputs"),
        (lambda module, x: x[x > 0].sum() + x, "branches on.*values of its inputs"),
        (lambda module, x: x + torch.ones(7), "could not be run on an example given as float32"),
    ],
)
def test_what_would_give_other_numbers_is_refused(bend, message):
    model = npeff.models.from_torch(Bend(bend).eval())
    with pytest.raises(ValueError, match=message):
        model.n_classes(VECTORS[0])


@pytest.mark.parametrize(
    "part",
    [
        nn.Dropout(0.1),
        nn.BatchNorm1d(4),
        nn.RReLU(),
        nn.MultiheadAttention(4, 2, dropout=0.1),
        nn.LSTM(4, 4, num_layers=2, dropout=0.1),
    ],
)
def test_parts_in_training_mode_are_refused_by_name(part):
    module = nn.Sequential(nn.Linear(4, 4), part, nn.Linear(4, 3))
    with pytest.raises(ValueError, match=rf"^1 \({type(part).__name__}\) is in training mode; call module.eval"):
        npeff.models.from_torch(module)
    npeff.models.from_torch(module.eval())


@pytest.mark.parametrize(
    "bend",
    [
        lambda module, x: functional.dropout(x, 0.5, training=module.training),
        lambda module, x: 2 * x if module.training else x,
    ],
)
def test_a_module_whose_own_code_asks_for_its_mode_is_refused_in_training(bend):
    module = Bend(bend)
    model = npeff.models.from_torch(module)
    with pytest.raises(ValueError, match=r"is in training mode.*call module.eval"):
        model.n_classes(VECTORS[0])
    assert npeff.models.from_torch(module.eval()).n_classes(VECTORS[0]) == 3


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda module, batch: (module(batch), batch), r"returned a tuple of a tensor of shape \(1, 3\)"),
        (lambda module, batch: {"scores": module(batch)}, "returned a dict with scores"),
        (lambda module, batch: module(batch)[0], r"shape \(3,\).*expected \(1, C\)"),
        (lambda module, batch: module(batch)[:, None], r"shape \(1, 1, 3\).*choose a position"),
    ],
)
def test_other_outputs_than_logits_are_named(forward, message):
    model = npeff.models.from_torch(nn.Linear(4, 3), forward=forward)
    with pytest.raises(ValueError, match=message):
        model.n_classes(VECTORS[0])


def test_an_example_with_other_names_is_named():
    model = npeff.models.from_torch(build("tied")[0])
    with pytest.raises(ValueError, match=r"does not take an example of input_ids.*takes ids, hidden"):
        model.n_classes({"input_ids": TOKENS["ids"][0]})


def test_types_are_kept_and_what_jax_cannot_hold_is_refused():
    module = nn.Linear(4, 3)
    assert npeff.models.from_torch(module.bfloat16()).params["weight"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"weight is float64.*module.float\(\)"):
        npeff.models.from_torch(module.double())
    with pytest.raises(ValueError, match="meta device"):
        npeff.models.from_torch(nn.Linear(4, 3, device="meta"))
    with pytest.raises(ValueError, match="has no shape yet"):
        npeff.models.from_torch(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="has no parameters"):
        npeff.models.from_torch(nn.ReLU())
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        npeff.models.from_torch(lambda x: x)
