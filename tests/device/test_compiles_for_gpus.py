"""The solvers' steps and fits compiled for H100s and T4s on a machine without one, and read.

    pip install jax-cuda12-plugin==VERSION jax-cuda12-pjrt==VERSION --no-deps    # of JAX; 480 MB, no nvidia-* packages
    python -m pytest -n0 -m gpu_compile tests/device

No product may be left without a precision: a GPU would round its inputs to TF32.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from programs import CALLBACKS, COLLECTIVES, count, imprecise_dots, mesh_of, spec
from solver_sizes import CASES, figures

import npeff_jax as npeff
from npeff_jax.factorization import Factors
from npeff_jax.factorization._driver import Limits, _advance
from npeff_jax.factorization._nonnegative import solve_nonnegative
from npeff_jax.factorization.row_spaces import DenseSpace, KernelSpace, _device_gram, _model_gram
from npeff_jax.pefs import FisherKind
from npeff_jax.pefs._memory import program_bytes

pytestmark = pytest.mark.gpu_compile

TARGETS = ("h100", "a100", "t4")


def problem_of(mesh, space, kind, n, N, frozen=None):
    c = N // n
    return npeff.Problem(
        rows=space,
        owner=spec(mesh, (N,), dtype="int32"),
        members=() if c == 1 else (spec(mesh, (n, c), dtype="int32"),),
        squared_norm=spec(mesh, ()),
        kind=kind,
        n_examples=n,
        frozen=frozen,
    )


def compiled_window(solver, problem, mesh, n, r, G):
    """A window of steps as the driver runs it, but without the driver's default precision."""
    start = Factors(spec(mesh, (n, r)), G, spec(mesh, (), dtype="int32"))

    limits = Limits(spec(mesh, (), dtype="int32"), spec(mesh, ()), spec(mesh, ()))

    def window(problem, start, limits):
        return _advance.__wrapped__(problem, start, None, limits, solver=solver, window=10, fresh=True)

    compiled = jax.jit(window).lower(problem, start, limits).compile()
    memory = compiled.memory_analysis()
    return compiled.as_text(), memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("solver", [npeff.DampedALS(), npeff.DampedALS(stiefel=True), npeff.GradientDescent()], ids=str)
def test_kernel_step(target, solver):
    """Eight devices: two gathers of N×r a step (three of the initial state included), nothing else crosses."""
    mesh, n, N, r = mesh_of(target, 8), 800, 1600, 64
    rows = KernelSpace(spec(mesh, (N, N), "shards", None), mesh, N, None)
    problem = problem_of(mesh, rows, FisherKind.LOW_RANK, n, N)
    text, memory = compiled_window(solver, problem, mesh, n, r, spec(mesh, (r, N)))
    assert not imprecise_dots(text), imprecise_dots(text)[0]
    assert count(text, "all-reduce") == count(text, "all-to-all") == count(text, "collective-permute") == 0
    assert 1 <= count(text, "all-gather") <= 3
    assert count(text, "scatter") == 0, "sums over rows are gathers: a scatter has no fixed order"
    assert memory < 64 * 4 * N * r


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("solver", [npeff.DampedALS(), npeff.HALS(), npeff.Multiplicative()], ids=str)
def test_dense_step(target, solver):
    mesh, n, m, r = mesh_of(target, 8), 400, 40_000, 32
    N = 2 * n if solver.kind is FisherKind.LOW_RANK else n
    rows = DenseSpace(spec(mesh, (N, m), None, "shards"), mesh, m)
    problem = problem_of(mesh, rows, solver.kind, n, N)
    text, _ = compiled_window(solver, problem, mesh, n, r, spec(mesh, (r, m), None, "shards"))
    assert not imprecise_dots(text), imprecise_dots(text)[0]
    lines = re.findall(r"= (.*?) all-(?:reduce|gather)(?:-start)?\(", text)
    sizes = [math.prod(map(int, size.split(","))) for line in lines for size in re.findall(r"f32\[([\d,]+)\]", line)]
    assert sizes, "nothing crosses devices: this is not a sharded program"
    assert max(sizes) <= N * r + 2 * r * r, "only N×r and r×r products cross devices"


@pytest.mark.parametrize("target", TARGETS)
def test_fit(target):
    mesh = mesh_of(target, 1)
    arguments = (spec(mesh, (1024, 64)), spec(mesh, (1024, 64)), spec(mesh, (64, 64)), spec(mesh, ()))
    text = jax.jit(lambda *x: solve_nonnegative.__wrapped__(*x, 100)).lower(*arguments).compile().as_text()
    assert not imprecise_dots(text), imprecise_dots(text)[0]


@pytest.mark.parametrize("kind", list(FisherKind))
def test_loss_and_gradient_in_a_users_own_program(kind):
    mesh, n, m, r = mesh_of("h100", 8), 400, 8000, 32
    N = 2 * n if kind is FisherKind.LOW_RANK else n
    problem = problem_of(mesh, DenseSpace(spec(mesh, (N, m), None, "shards"), mesh, m), kind, n, N)
    G = spec(mesh, (r, m), None, "shards")
    for function in (npeff.Problem.loss, npeff.Problem.gradient, jax.grad(npeff.Problem.loss, argnums=(1, 2))):
        text = jax.jit(function).lower(problem, spec(mesh, (n, r)), G).compile().as_text()
        assert not imprecise_dots(text), imprecise_dots(text)[0]


def test_the_check_finds_what_it_looks_for():
    mesh = mesh_of("h100", 1)
    x = spec(mesh, (512, 512))
    assert imprecise_dots(jax.jit(lambda x: x @ x).lower(x).compile().as_text())
    assert not imprecise_dots(jax.jit(lambda x: jnp.matmul(x, x, precision="highest")).lower(x).compile().as_text())


@pytest.mark.parametrize("devices", [1, 8])
def test_the_gram_matrix_grows_where_it_is(devices):
    """A tile's product is added to Q in place, a tile is filled in place; nothing crosses devices or to the host."""
    mesh, N, width, f = mesh_of("h100", devices), 8000, 4096, 8
    Q, tile = spec(mesh, (N, N), "shards", None), spec(mesh, (N, width))
    rows, values = spec(mesh, (1 << 20,), dtype="int32"), spec(mesh, (1 << 20,))
    add = functools.partial(_device_gram._add_tile.__wrapped__, first_frozen=N - f, mesh=mesh)
    fill = functools.partial(_device_gram._fill.__wrapped__, mesh=mesh)
    for function, donated, arguments in (
        (add, (0, 1), (Q, tile, spec(mesh, (f, width)))),
        (fill, 0, (tile, rows, rows, values)),
    ):
        compiled = jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
        text, memory = compiled.as_text(), program_bytes(compiled)
        assert not imprecise_dots(text), imprecise_dots(text)[0]
        assert not CALLBACKS.findall(text)
        assert not any(count(text, name) for name in COLLECTIVES)
        assert memory <= 4 * N * width / devices + 1e8, "beside Q and the tile: a device's rows of the tile"


@pytest.mark.parametrize("devices", [1, 8])
def test_the_kernel_of_a_model_grows_where_it_is(devices):
    """Products of two batches are stored in Q in place, and Q is scaled in place; nothing of its size crosses."""
    mesh, N, rows = mesh_of("h100", devices), 8000, 96
    Q, place = spec(mesh, (N, N), "shards", None), spec(mesh, (), dtype="int32")
    store = functools.partial(_model_gram._set.__wrapped__, N=N - 8, mesh=mesh)
    scale = functools.partial(_model_gram._scaled.__wrapped__, mesh=mesh)
    near = functools.partial(_model_gram._near_diagonal.__wrapped__, c=2, mesh=mesh)
    for function, donated, arguments in (
        (store, 0, (Q, spec(mesh, (rows, rows)), place, place)),
        (scale, 0, (Q, spec(mesh, (N,)))),
        (near, (), (Q,)),
    ):
        compiled = jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
        text, memory = compiled.as_text(), program_bytes(compiled)
        assert not CALLBACKS.findall(text)
        assert not any(count(text, name) for name in COLLECTIVES)
        assert memory <= 1e6, "beside Q"


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("case", [case for cases in CASES.values() for case in cases], ids=str)
def test_the_largest_size_that_is_planned(case, devices):
    """Memory within a fifth of the plan's; only N×r and r×r products cross devices, and each has a precision."""
    found = figures(*case, devices)
    assert found["over plan"] == pytest.approx(1, abs=0.2)
    assert found["over N r + 2 r^2"] <= 1
    assert found["products without precision"] == 0
