"""PyTorch modules with what is hard to convert, and their gradient rows by autograd."""

import jax
import numpy as np
import pytest

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
