"""JAX's own switches: results are right under each of them, whatever the user has set."""

import contextlib

import jax
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.tasks import planted, planted_diagonal

SHORT = {"stopping": npeff.Stopping(max_steps=12), "progress": False}
ROWS = {"low_rank": (npeff.DenseRows(), npeff.SparseRows(), npeff.KernelRows()), "diagonal": (npeff.DenseRows(),)}

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
STRICT = {
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "transfer guard": lambda: jax.transfer_guard("disallow"),
}


@contextlib.contextmanager
def all_strict():
    """Together, since each run compiles everything anew. What they raise names the switch."""
    with contextlib.ExitStack() as stack:
        for switch in STRICT.values():
            stack.enter_context(switch())
        yield


SWITCHES = {"x64": lambda: enable_x64(True), "strict": all_strict}


def run(made, rows):
    first = npeff.decompose(made.pefs, 3, rows=rows, **SHORT)
    wider = npeff.expand(first, made.pefs, 1, rows=rows, **SHORT)
    fit = npeff.fit_coefficients(first, made.pefs)
    assert fit.coefficients.dtype == first.coefficients.dtype == np.float32
    return np.array([first.loss, wider.loss, fit.loss])


@pytest.fixture(scope="module")
def expected():
    made = {"low_rank": planted(n=20, noise=0.3), "diagonal": planted_diagonal(n=20)}
    return {(kind, rows): (made[kind], run(made[kind], rows)) for kind, choices in ROWS.items() for rows in choices}


@pytest.mark.parametrize("switch", SWITCHES)
def test_results_do_not_depend_on_switches(switch, expected):
    for (kind, rows), (made, losses) in expected.items():
        with SWITCHES[switch]():
            got = run(made, rows)
        np.testing.assert_allclose(got, losses, rtol=1e-4, err_msg=f"{kind} {rows}")


@pytest.mark.parametrize("make", [planted, planted_diagonal])
def test_results_do_not_depend_on_compilation(make):
    """Operation by operation, which is slow: two steps of a small problem."""
    made = make(n=6, m=10, r=3)
    options = {"rows": npeff.DenseRows(), "stopping": npeff.Stopping(max_steps=2, window=2), "progress": False}
    compiled = npeff.decompose(made.pefs, 2, **options)
    with jax.disable_jit():
        plain = npeff.decompose(made.pefs, 2, **options)
        fit = npeff.fit_coefficients(compiled, made.pefs, max_sweeps=4, chunk_size=6)
    np.testing.assert_allclose(plain.history.loss, compiled.history.loss, rtol=1e-4)
    expected = npeff.fit_coefficients(compiled, made.pefs, max_sweeps=4, chunk_size=6)
    np.testing.assert_allclose(fit.coefficients, expected.coefficients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("switch", ["x64", "rank promotion", "dtype promotion"])
def test_a_step_in_a_users_own_jit(switch):
    made, solver = planted(n=20, noise=0.3), npeff.DampedALS(stiefel=True)
    with (SWITCHES | STRICT)[switch]():
        problem = npeff.Problem.of(made.pefs)
        state = jax.jit(solver.init)(problem, solver.start(problem, 3, 0, npeff.InitialFactors()))
        before = problem.loss(*solver.factors(state))
        state = jax.jit(solver.step)(problem, state)
        assert problem.loss(*solver.factors(state)) < before
        assert state.G.dtype == np.float32
