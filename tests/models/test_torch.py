"""PyTorch modules: gradient rows against autograd on one device and on eight."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from torch_modules import MODULES, build, torch_rows

import npeff_jax as npeff

torch = pytest.importorskip("torch")
pytest.importorskip("torchax")
nn, functional = torch.nn, torch.nn.functional


@pytest.mark.parametrize("name", MODULES)
def test_pefs_on_one_device_and_on_eight_agree_with_autograd(name):
    module, examples = build(name)
    expected = torch_rows(module, examples)
    model = npeff.models.from_torch(module)
    assert jax.device_count() == 8
    for mesh in (None, npeff.make_mesh()):
        pefs = npeff.compute_pefs(
            model,
            examples,
            npeff.LowRank(rows=npeff.RowBasis.CLASSES),
            keep=None,
            normalization=npeff.Normalization.NONE,
            mesh=mesh,
        )
        rows = pefs.to_scipy().toarray()
        np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_names_are_those_of_the_state_dict_and_tied_weights_count_once():
    module, _ = build("tied")
    model = npeff.models.from_torch(module)
    assert set(model.params) == set(module.state_dict())
    assert model.params["out.weight"] is model.params["words.weight"]
    shared = next(p for p in model.space.layout.parameters if p.aliases)
    assert {shared.name, *shared.aliases} == {"out.weight", "words.weight"}
    assert model.space.size == sum(weight.numel() for weight in module.parameters())


def test_the_module_and_what_is_global_stay_as_they_were():
    module, examples = build("state")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.train()
    modes = torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled(), torch.get_default_device()
    random = torch.get_rng_state()
    model = npeff.models.from_torch(module)
    logits = model.logits_fn(model.params, examples[0])
    assert modes == (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled(), torch.get_default_device())
    assert torch.equal(random, torch.get_rng_state())
    assert module.training
    assert not hasattr(module, "last")
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    with torch.no_grad():
        module.first.weight.zero_()
    np.testing.assert_array_equal(model.logits_fn(model.params, examples[0]), logits)  # its arrays are its own


def test_importing_leaves_jax_and_torch_as_they_were():
    code = (
        "import os, jax, torch; from npeff_jax.models import from_torch\n"
        "option = 'jax_pjrt_client_create_options'; environment = dict(os.environ)\n"
        "before = getattr(jax.config, option, None), torch.backends.mha.get_fastpath_enabled()\n"
        "from_torch(torch.nn.Linear(2, 2))\n"
        "assert before == (getattr(jax.config, option, None), torch.backends.mha.get_fastpath_enabled())\n"
        "assert environment == dict(os.environ)\n"
        "torch.ones(2) + 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_trainable_chooses_by_requires_grad_by_pattern_or_by_predicate():
    module, _ = build("convolution")
    module.conv.requires_grad_(False)

    def names(**options):
        return {p.name for p in npeff.models.from_torch(module, **options).space.layout.parameters}

    assert names() == {"head.weight", "head.bias", "norm.weight", "norm.bias"}
    assert names(trainable="conv.*") == {"conv.weight", "conv.bias"}
    assert names(trainable=lambda name, array: array.ndim == 4) == {"conv.weight"}
    with pytest.raises(ValueError, match=r"trainable='nothing' fits no parameter; they are conv.weight"):
        names(trainable="nothing")
    module.requires_grad_(False)
    with pytest.raises(ValueError, match=r"every parameter has requires_grad=False; .*trainable='\*'"):
        names()
    with pytest.raises(TypeError, match="pass trainable="):
        names(mask="conv.*")


def test_buffers_attributes_settings_and_forward_are_part_of_the_identity():
    def digest(change=lambda module: None, **options):
        module, _ = build("convolution")
        change(module)
        return npeff.models.from_torch(module, **options).constants_digest

    assert digest() == digest()
    changes = [
        lambda module: module.norm.running_var.mul_(2),
        lambda module: module.scale.add_(1),
        lambda module: module.shifts[0].add_(1),
        lambda module: setattr(module.norm, "eps", 0.1),
    ]
    digests = {digest(), *map(digest, changes), digest(forward=lambda module, batch: module(2 * batch))}
    assert len(digests) == len(changes) + 2


def test_the_rest_of_the_library_takes_it(tmp_path):
    module, images = build("convolution")
    model = npeff.models.from_torch(module, trainable="head.*")
    pefs = npeff.compute_pefs(model, images, keep=None, path=tmp_path / "pefs", progress=False)
    decomposition = npeff.decompose(pefs, 2, seed=0, progress=False)
    rows = npeff.factorization.model_rows(model, images)
    from_model = npeff.decompose(rows, 2, seed=0, progress=False)
    assert abs(from_model.history.loss[-1] - decomposition.history.loss[-1]) < 1e-3
    table = npeff.selectivity(
        model,
        decomposition,
        pefs,
        images,
        fit=decomposition,
        n_top=3,
        nulls=npeff.Nulls(n_random_directions=2),
        progress=False,
    )
    assert np.isfinite(table.selectivity).all() if hasattr(table, "selectivity") else len(repr(table))
    fisher = npeff.perturbation.dataset_fisher(model, images)
    expected = (torch_rows(module, images) ** 2).sum(0) / len(images)
    names = sorted(dict(module.named_parameters()))
    sizes = [dict(module.named_parameters())[name].numel() for name in names]
    by_name = dict(zip(names, np.split(expected, np.cumsum(sizes)[:-1]), strict=True))
    found = np.asarray(fisher["head.weight"]).ravel()
    np.testing.assert_allclose(found, by_name["head.weight"], rtol=0, atol=1e-5 * found.max())
