"""The page "Extending": its code as it stands, on a small model, and that what it passes is what runs."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff

PAGE = (pathlib.Path(__file__).parents[1] / "docs/extending.md").read_text()


@pytest.fixture(scope="module")
def names():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6)).astype(np.float32)
    params = {
        "w": jnp.asarray(rng.normal(size=(6, 8)), jnp.float32),
        "v": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
    }
    model = npeff.Model(lambda p, e: jnp.tanh(e @ p["w"]) @ p["v"], params)
    found = {"model": model, "examples": x, "labels": rng.integers(3, size=60)}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "extending.md", "exec"), found)
    return found


def test_a_representation(names):
    """The empirical Fisher's norm is the squared norm of the gradient of the loss, here by finite differences."""
    model, pefs = names["model"], names["pefs"]
    assert pefs.schema.representation["name"] == "Empirical"
    x, y = names["examples"][0].astype(np.float64), names["labels"][0]
    flat = {name: np.asarray(leaf, np.float64) for name, leaf in model.params.items()}

    def loss(p):
        z = np.tanh(x @ p["w"]) @ p["v"]
        return np.log(np.exp(z - z.max()).sum()) + z.max() - z[y]

    gradient = []
    for name, leaf in flat.items():
        for i in np.ndindex(leaf.shape):
            up, down = ({**flat, name: leaf.copy()} for _ in range(2))
            up[name][i] += 1e-5
            down[name][i] -= 1e-5
            gradient.append((loss(up) - loss(down)) / 2e-5)
    assert pefs.norms[0] == pytest.approx(np.sum(np.square(gradient)), rel=1e-4)


def test_a_solver_runs_its_own_step(names):
    plain = npeff.decompose(names["pefs"], 3, progress=False)
    assert names["decomposition"].settings["solver"]["threshold"] == 0.02
    assert np.mean(names["decomposition"].coefficients == 0) > np.mean(plain.coefficients == 0)


def test_adam_without_the_driver(names):
    start, problem = names["start"], names["problem"]
    assert names["by_adam"].loss < 0.8 * float(problem.loss(start.W, start.G))
    assert names["by_adam"].pseudo_fishers.shape[0] == 3


def test_a_row_space(names):
    assert names["sketched"].settings["row_space"].startswith("ProjectedRows")
    exact = npeff.decompose(names["pefs"], 3, progress=False)
    assert exact.loss <= names["sketched"].loss + 1e-4 < 1.5 * exact.loss + 0.05


def test_an_edit(names):
    table = names["table"]
    assert table.kl_ratio.shape == (3,)
    assert np.isfinite(table.null_kl_ratio).all()
    moved = names["Shrink"]().apply(npeff.perturbation.Subject(names["model"], names["decomposition"]), 0)
    change = moved.params["w"] - names["model"].params["w"]
    assert 0 < float(jnp.abs(change / names["model"].params["w"]).max()) <= 0.1 + 1e-5
