"""JAX's own switches: results are right under each of them, whatever the user has set."""

import contextlib

import jax
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.tasks import planted, planted_diagonal

SHORT = {"stopping": npeff.Stopping(max_steps=12), "progress": False}
ROWS = {"low_rank": (npeff.DenseRows(), npeff.SparseRows(), npeff.KernelRows()), "diagonal": (npeff.SparseRows(),)}

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
SWITCHES = {
    "x64": lambda: enable_x64(True),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "no jit": jax.disable_jit,
    "transfer guard": lambda: jax.transfer_guard("disallow"),
}


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
        if switch == "no jit" and rows == npeff.SparseRows():
            continue  # the compressed product has a kernel of its own inside a compiled program only
        with SWITCHES[switch]():
            got = run(made, rows)
        np.testing.assert_allclose(got, losses, rtol=1e-4, err_msg=f"{kind} {rows}")


@pytest.mark.parametrize("switch", ["x64", "rank promotion", "dtype promotion"])
def test_a_step_in_a_users_own_jit(switch):
    made, solver = planted(n=20, noise=0.3), npeff.DampedALS(stiefel=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(SWITCHES[switch]())
        problem = npeff.Problem.of(made.pefs)
        state = jax.jit(solver.init)(problem, solver.start(problem, 3, 0, npeff.InitialFactors()))
        before = problem.loss(*solver.factors(state))
        state = jax.jit(solver.step)(problem, state)
        assert problem.loss(*solver.factors(state)) < before
        assert state.G.dtype == np.float32
