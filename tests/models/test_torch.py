"""PyTorch modules: gradient rows against autograd on one device and on eight, and what must be refused."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff

torch = pytest.importorskip("torch")
pytest.importorskip("torchax")
nn, functional = torch.nn, torch.nn.functional

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(11, 2, 6, 6)).astype(np.float32)  # 11: no multiple of eight devices
VECTORS = RNG.normal(size=(5, 4)).astype(np.float32)
TOKENS = {"ids": RNG.integers(0, 11, (5, 6)), "hidden": np.arange(6) >= np.array([6, 2, 4, 5, 3])[:, None]}  # int64

SHORT = jax.tree.map(lambda leaf: leaf[:, :2], TOKENS)  # a recurrent network is compiled step by step


class Convolution(nn.Module):
    """BatchNorm, dropout, tensors that are attributes, one of them in a list, and one made on the way."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)
        self.scale, self.shifts = torch.tensor([1.0, 2.0, 3.0]), [torch.full((3,), 0.5)]
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x):
        x = self.dropout(functional.relu(self.norm(self.conv(x))))
        return self.head(x.mean((-1, -2))) * self.scale + self.shifts[0] + torch.arange(3)


class Tied(nn.Module):
    """A transformer whose output layer is its embedding, and whose mask hides padding."""

    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.out.weight = self.words.weight
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)

    def forward(self, ids, hidden=None):
        return self.out(self.layer(self.words(ids), src_key_padding_mask=hidden)[:, 0])


class Recurrent(nn.Module):
    """Weights that PyTorch also holds in a list of its own."""

    def __init__(self, kind):
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.cells, self.out = kind(6, 4, bidirectional=True, batch_first=True), nn.Linear(8, 3)

    def forward(self, ids, hidden=None):
        return self.out(self.cells(self.words(ids))[0][:, -1])


class Bend(nn.Module):
    """Two layers with ``bend(module, x)`` between them."""

    def __init__(self, bend):
        super().__init__()
        self.first, self.second, self.bend = nn.Linear(4, 4), nn.Linear(4, 3), bend

    def forward(self, x):
        x = self.first(x)
        return self.second(self.bend(self, x) + 0.1 * x)


class Reversed(torch.autograd.Function):
    """A gradient of its own, of another sign."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return torch.sin(x) * factor

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return -gradient * torch.cos(x) * ctx.factor, None


def without_gradient(module, x):
    with torch.no_grad():
        return torch.sigmoid(x)


def write_columns(module, x):
    found = torch.zeros(x.shape[0], 4)
    found[:, 1] = x[:, 1]
    found.mul_(2.0)
    return found


def keep_state(module, x):
    module.last = x
    return x


def branch_on_shape(module, x):
    return x if torch.arange(x.shape[-1]).sum().item() == 6 else -x


MODULES = {
    "convolution": (lambda: Convolution(), IMAGES),
    "tied": (lambda: Tied(), TOKENS),
    "lstm": (lambda: Recurrent(nn.LSTM), SHORT),
    "no_grad": (lambda: Bend(without_gradient), VECTORS),
    "detach": (lambda: Bend(lambda module, x: torch.detach(x) * x.detach()), VECTORS),
    "data": (lambda: Bend(lambda module, x: x.data), VECTORS),
    "in place": (lambda: Bend(write_columns), VECTORS),
    "state": (lambda: Bend(keep_state), VECTORS),
    "shape": (lambda: Bend(branch_on_shape), VECTORS),
    "own gradient": (lambda: Bend(lambda module, x: Reversed.apply(x, 2.0)), VECTORS),
    "no dropout": (lambda: Bend(lambda module, x: functional.dropout(x, 0.0)), VECTORS),
}


def torch_rows(module, examples):
    """Class rows ``sqrt(p_j) ∇ log p_j`` by one backward pass each, the parameters in the order of their names."""
    unique = {}
    for name, weight in module.named_parameters(remove_duplicate=False):
        unique.setdefault(id(weight), (name, weight))
    weights = [weight for _, weight in sorted(unique.values(), key=lambda entry: entry[0])]
    rows = []
    for i in range(len(jax.tree.leaves(examples)[0])):
        batch = jax.tree.map(lambda leaf: torch.as_tensor(leaf[i : i + 1]), examples)  # noqa: B023
        logits = (module(**batch) if isinstance(batch, dict) else module(batch))[0]
        log_p = logits.log_softmax(-1)
        for j in range(len(logits)):
            found = torch.autograd.grad(log_p[j], weights, retain_graph=True, allow_unused=True)
            parts = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
            rows.append(torch.cat([part.ravel() for part in parts]) * log_p[j].exp().sqrt())
    return torch.stack(rows).detach().numpy()


def build(name):
    torch.manual_seed(0)
    make, examples = MODULES[name]
    return make().eval(), examples


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


@pytest.mark.parametrize(
    ("bend", "message"),
    [
        (lambda module, x: functional.dropout(x, 0.5), "random numbers"),
        (lambda module, x: x * torch.rand(()), "random numbers"),
        (lambda module, x: x * torch.rand((), device="cpu"), "random numbers"),
        (lambda module, x: x + torch.empty_like(x).exponential_(), "random numbers"),
        (lambda module, x: x * float(np.random.rand()), "random numbers"),  # noqa: NPY002
        (lambda module, x: x if x.sum() > 0 else -x, r"branches on.*test_torch.py, line \d+.*torch.where"),
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
