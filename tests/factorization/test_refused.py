"""Bad input: one sentence that names the argument, before any work; and what must not be mixed up."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.factorization import Factors
from npeff_jax.factorization._nonnegative import solve_nonnegative
from npeff_jax.pefs import FisherKind
from npeff_jax.tasks import planted, planted_diagonal

QUIET = {"progress": False}


def model_of(seed=0, n=12, scale=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    w = jnp.asarray(scale * rng.normal(size=(3, 4)), jnp.float32)
    return npeff.Model(lambda p, e: e @ p["w"], {"w": w}), x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": npeff.HALS}, r"solver=HALS is a class; pass an instance of Solver, such as HALS\(\)"),
        ({"solver": "hals"}, "solver='hals' is of type str; pass an instance of Solver"),
        ({"rows": npeff.DenseRows}, r"rows=DenseRows is a class; pass an instance, rows=DenseRows\(\)"),
        ({"rows": "dense"}, r"rows='dense' is of type str; pass DenseRows\(\) or SparseRows\(\) or KernelRows\(\)"),
        ({"products": "bfloat16"}, "products='bfloat16' is of type str; pass ProductPrecision.FLOAT32 or Product"),
        ({"stopping": 100}, "stopping=100 is of type int; pass an instance of Stopping"),
        ({"start": np.ones((3, 3))}, "start is of type ndarray; pass an instance of InitialFactors"),
        ({"seed": 1.5}, "seed=1.5 is no whole number; expected an integer of at least 0"),
        ({"checkpoints": "folder"}, "checkpoints='folder' is of type str; pass an instance of Checkpoints"),
        ({"n_components": 2.0}, "n_components=2.0 is no whole number"),
    ],
)
def test_arguments_of_another_type(arguments, message):
    arguments = {"n_components": 3} | arguments
    with pytest.raises(TypeError, match=message):
        _raw(npeff.decompose)(planted(n=5).pefs, **arguments, **QUIET)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: npeff.Stopping(tolerance=float("nan")), "tolerance=nan is out of range"),
        (lambda: npeff.Stopping(max_steps=True), "max_steps=True is no whole number"),
        (lambda: npeff.DampedALS(damping=-1.0), "damping=-1 is out of range"),
        (lambda: npeff.DampedALS(sweeps=0), "sweeps=0 is out of range"),
        (lambda: npeff.HALS(exchanges=-1), "exchanges=-1 is out of range"),
        (lambda: npeff.GradientDescent(learning_rate=float("inf")), "learning_rate=inf is out of range"),
        (lambda: npeff.Multiplicative(epsilon=0.0), "epsilon=0 is out of range"),
        (lambda: npeff.KernelRows(sketch=0), "sketch=0 is out of range"),
        (lambda: npeff.InitialFactors(coefficients="random"), "coefficients has shape .* expected numbers"),
        (lambda: npeff.Checkpoints("gs://bucket/run"), "directory='gs://bucket/run' has the scheme gs://"),
        (lambda: npeff.Checkpoints("run", every=0), "every=0 is out of range"),
        (lambda: npeff.Tuning.of_examples("a", True, [0]), "n_examples=True is no whole number"),
        (lambda: npeff.Tuning.of_examples("a", 3, [5]), "yes= has a position of 'a' that is not from 0 to 2"),
        (lambda: npeff.Tuning("a", [True, [1]]), "the marks of 'a' is ragged"),
        (lambda: _raw(npeff.make_mesh)(["cpu:0"]), "devices has 'cpu:0', a str; expected a list of devices"),
    ],
)
def test_settings_are_checked_where_they_are_made(make, words):
    """Each is a setting that would fail late, or be ignored: what was given is in the message, under its name."""
    with pytest.raises((TypeError, ValueError), match=words):
        make()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_components": True}, "n_components=True is no whole number"),
        ({"seed": -1}, "seed=-1 is out of range"),
        ({"min_count": 0}, "min_count=0 is out of range"),
        ({"callback": 3}, "callback=3 is a int; pass a function"),
        ({"mesh": jax.devices()}, "mesh is of type list; pass npeff_jax.make_mesh"),
        ({"progress": "yes"}, "progress='yes' is a str; pass True, False or a text stream"),
        ({"path": "s3://bucket/d"}, "path='s3://bucket/d' has the scheme s3://"),
    ],
)
def test_arguments_that_would_fail_late(arguments, message):
    arguments = {"n_components": 3, **QUIET} | arguments
    with pytest.raises((TypeError, ValueError), match=message):
        _raw(npeff.decompose)(planted(n=5).pefs, **arguments)


def test_settings_of_a_fit():
    pefs = planted(n=5).pefs
    found = npeff.decompose(pefs, 1, **QUIET)
    for name, value in {"tolerance": float("nan"), "max_sweeps": 1.5, "chunk_size": 0}.items():
        with pytest.raises((TypeError, ValueError), match=f"{name}="):
            _raw(npeff.fit_coefficients)(found, pefs, **{name: value})


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    steps = []
    for target in (tmp_path / "file" / "d", tmp_path / "file"):
        with pytest.raises(OSError, match="file"):
            npeff.decompose(planted(n=5).pefs, 2, path=target, callback=steps.append, **QUIET)
    with pytest.raises(NotADirectoryError, match="is a file"):
        npeff.Checkpoints(tmp_path / "file" / "c")
    assert not steps


# tasks that Orbax leaves behind when it cannot read a checkpoint end in an event loop that is closed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_checkpoints_of_another_start_and_damaged_ones(tmp_path, monkeypatch):
    """A relative directory is that of the moment it was named; another W to start from is another run."""
    pefs = planted(n=8).pefs
    options = {"stopping": npeff.Stopping(max_steps=20, tolerance=-1.0), **QUIET}
    monkeypatch.chdir(tmp_path)
    kept = npeff.Checkpoints("c")
    monkeypatch.chdir("/")
    ones, other = (npeff.InitialFactors(coefficients=np.full((8, 2), c, np.float32) + np.eye(8, 2)) for c in (1, 2))
    first = npeff.decompose(pefs, 2, start=ones, checkpoints=kept, **options)
    assert (tmp_path / "c").is_dir()
    with pytest.raises(ValueError, match=r"checkpoints in .* are of another run: start_values"):
        npeff.decompose(pefs, 2, start=other, checkpoints=kept, **options)
    again = npeff.decompose(pefs, 2, start=ones, checkpoints=kept, **options)
    np.testing.assert_allclose(again.coefficients, first.coefficients, rtol=1e-5)
    for file in (tmp_path / "c").rglob("_CHECKPOINT_METADATA"):
        file.write_text("")
    with pytest.raises(
        OSError, match=f"the checkpoints in {tmp_path / 'c'} cannot be read .ValueError: the metadata of step 20"
    ):
        npeff.decompose(pefs, 2, start=ones, checkpoints=kept, **options)


def _raw(function):
    """Without the type checks of the test run, which users do not have."""
    return getattr(function, "__wrapped__", function)


def test_swapped_and_listed_arguments():
    pefs = planted(n=8).pefs
    found = npeff.decompose(pefs, 2, **QUIET)
    with pytest.raises(TypeError, match=r"pefs is a list of 2; sets of PEFs are decomposed one by one"):
        _raw(npeff.decompose)([pefs, pefs], 2, **QUIET)
    with pytest.raises(TypeError, match=r"got \(Pefs, Decomposition\); pass the decomposition first"):
        _raw(npeff.fit_coefficients)(pefs, found)


def test_an_own_solver_that_cannot_be_compiled():
    @dataclasses.dataclass
    class Mutable(npeff.DampedALS.__mro__[1]):
        weights: list

        def step(self, problem, state):
            return state

    with pytest.raises(TypeError, match="solver=Mutable is not hashable; make it a frozen dataclass"):
        npeff.decompose(planted(n=5).pefs, 2, solver=Mutable([1]), **QUIET)


def test_numpy_scalars_are_settings_like_any_other(tmp_path):
    stopping = npeff.Stopping(max_steps=int(np.int64(15)), tolerance=float(np.float32(-1)))
    solver = npeff.DampedALS()
    for name, value in {"damping": np.float32(0.01), "exchanges": np.int64(0)}.items():
        object.__setattr__(solver, name, value)  # past the type checks of the test run, which users do not have
    solver.__post_init__()
    raw = _raw(npeff.decompose)
    options = {"solver": solver, "stopping": stopping, "min_count": np.int64(1), **QUIET}
    found = raw(planted().pefs, np.int64(3), seed=np.int64(4), path=tmp_path / "d", **options)
    assert found.settings["seed"] == 4
    assert npeff.load_decomposition(tmp_path / "d").settings["solver"]["exchanges"] == 0
    assert found.history.loss.size == 15


def test_what_checkpoints_are_of(tmp_path):
    """Other normalization, other sparsification, another subset: named; the same again: resumed."""
    model, x = model_of()
    base = {"rows": npeff.DenseRows(), "stopping": npeff.Stopping(max_steps=20, tolerance=-1.0), **QUIET}
    first = npeff.compute_pefs(model, x, **QUIET)
    kept = npeff.Checkpoints(tmp_path / "c")
    npeff.decompose(first, 2, checkpoints=kept, **base)
    others = {
        "normalization": npeff.compute_pefs(model, x, normalization=npeff.Normalization.NONE, **QUIET),
        "keep": npeff.compute_pefs(model, x, keep=9, **QUIET),
        "representation": npeff.compute_pefs(model, x, npeff.LowRank(rows=npeff.RowBasis.CLASSES), **QUIET),
        "n_examples": first.subset(np.arange(10)),
        "rows": first.subset(np.arange(11, -1, -1)),
    }
    for name, pefs in others.items():
        with pytest.raises(ValueError, match=f"checkpoints in .* are of another run: .*{name}"):
            npeff.decompose(pefs, 2, checkpoints=kept, **base)
    again = npeff.compute_pefs(model, x, **QUIET)
    assert npeff.decompose(again, 2, checkpoints=kept, **base).history.loss.size == 20


def test_pefs_in_another_unit_are_not_fitted():
    model, x = model_of()
    found = npeff.decompose(npeff.compute_pefs(model, x, **QUIET), 2, **QUIET)
    raw = npeff.compute_pefs(model, x, normalization=npeff.Normalization.NONE, **QUIET)
    warm = npeff.Model(model.logits_fn, model.params, output=npeff.Categorical(temperature=3.0))
    for pefs, what in ((raw, "normalization"), (npeff.compute_pefs(warm, x, **QUIET), "output")):
        for use in (npeff.fit_coefficients, lambda d, p: npeff.expand(d, p, 1, **QUIET)):
            with pytest.raises(ValueError, match=what):
                use(found, pefs)


@pytest.mark.parametrize("kind", list(FisherKind))
def test_fishers_that_are_all_zero(kind):
    model, x = model_of()
    representation = npeff.LowRank() if kind is FisherKind.LOW_RANK else npeff.Diagonal()
    closed = npeff.Model(lambda p, e: e @ model.params["w"], model.params)
    with pytest.raises(
        ValueError, match=r"no gradient reaches any parameter|param"
    ):  # there, or where it is decomposed
        npeff.decompose(npeff.compute_pefs(closed, x, representation, **QUIET), 2, **QUIET)


def test_a_failed_example_is_left_out_and_counted():
    model, x = model_of()
    x[5] = 0
    broken = npeff.Model(lambda p, e: e @ p["w"] + jnp.sqrt(jnp.sum((e @ p["w"]) ** 2)), model.params)
    pefs = npeff.compute_pefs(broken, x, on_failure="skip", **QUIET)
    for solver in (npeff.DampedALS(), npeff.GradientDescent()):
        stopping = npeff.Stopping(max_steps=20)
        found = npeff.decompose(pefs, 2, solver=solver, stopping=stopping, **QUIET)
        assert found.settings["failed_examples"] == 1
        assert not found.coefficients[5].any()
        rest = pefs.subset(np.delete(np.arange(12), 5))
        assert np.isfinite(found.coefficients).all()
        assert "failed_examples" not in npeff.decompose(rest, 2, solver=solver, stopping=stopping, **QUIET).settings


def test_losses_of_a_sketch_are_named_so():
    found = npeff.decompose(planted(noise=0.3).pefs, 4, rows=npeff.KernelRows(sketch=64), **QUIET)
    assert found.settings["history"] == "of the sketched problem"
    assert found.loss == found.settings["loss"] != found.history.loss[-1] == found.settings["sketched_loss"]
    exact = npeff.decompose(planted(noise=0.3).pefs, 4, **QUIET)
    assert exact.loss == exact.history.loss[-1]
    assert "history" not in exact.settings


@pytest.mark.parametrize("margin", [0.0, 8.0, 40.0, 80.0])
def test_model_rows_are_those_of_compute_pefs(margin):
    """At any confidence: a pull-back without scaling gives zeros from a margin of 80 on."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3)).astype(np.float32)
    shift = jnp.asarray([margin, 0.0, -margin / 7])
    model = npeff.Model(lambda p, e: jnp.tanh(e @ p["w"]) @ p["v"] + shift, {
        "w": jnp.asarray(rng.normal(size=(3, 5)), jnp.float32), "v": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    })  # fmt: skip
    A = npeff.compute_pefs(model, x, npeff.LowRank(rows=npeff.RowBasis.FACTOR), keep=None, **QUIET).to_scipy().toarray()
    problem = npeff.Problem.of(npeff.model_rows(model, x, batch_size=4))
    Q = np.asarray(problem.rows.Q)
    np.testing.assert_allclose(Q, A @ A.T, rtol=1e-3, atol=1e-5)
    assert np.trace(Q) > 5
    np.testing.assert_allclose(problem.rows.expand(jnp.eye(12)), A, rtol=1e-3, atol=1e-5)


def test_repeated_calls_compile_once_and_keep_nothing():
    """Equal shapes are one program, whose cache does not hold the rows it was first compiled for."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    options = {"stopping": npeff.Stopping(max_steps=25), "rows": npeff.KernelRows(), **QUIET}
    npeff.decompose(planted(0).pefs, 3, **options)
    problem = npeff.Problem.of(planted(0).pefs, rows=npeff.KernelRows())
    npeff.decompose(problem, 3, **QUIET)
    compiled.clear()
    kept = weakref.ref(problem.rows.recover)
    npeff.decompose(problem, 3, **QUIET)
    for seed in (1, 2):
        npeff.decompose(planted(seed).pefs, 3, **options)
    assert not compiled
    del problem
    gc.collect()
    assert kept() is None


def products_without_precision(lowered):
    lines = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    assert lines, "there are no products in this program"
    return [line for line in lines if "precision = [HIGHEST, HIGHEST]" not in line]


@pytest.mark.parametrize(
    ("solver", "make"),
    [
        (npeff.DampedALS(), planted),
        (npeff.DampedALS(orthogonality=0.1), planted),
        (npeff.DampedALS(stiefel=True), planted),
        (npeff.GradientDescent(), planted),
        (npeff.HALS(), planted_diagonal),
        (npeff.Multiplicative(), planted_diagonal),
    ],
    ids=["als", "orthogonality", "stiefel", "gradient", "hals", "multiplicative"],
)
@pytest.mark.parametrize("rows", [npeff.DenseRows(), npeff.KernelRows()])
def test_every_product_of_a_step_states_its_precision(solver, make, rows):
    """In a user's own program, where nothing else sets one: an accelerator's default would round the inputs."""
    if make is planted_diagonal and rows == npeff.KernelRows():
        return
    problem = npeff.Problem.of(make(n=10).pefs, rows=rows).on_device()
    start = Factors(
        jnp.ones((10, 2)), jnp.ones((2, problem.rows.pull_back(jnp.ones((problem.rows.n_rows, 1))).shape[1])), 0
    )
    program = jax.jit(
        lambda problem, start: solver.loss_terms(problem, solver.step(problem, solver.init(problem, start)))
    )
    assert not products_without_precision(program.lower(problem, start))
    own = jax.jit(lambda problem, start: (problem.loss(start.W, start.G), problem.gradient(start.W, start.G)))
    assert not products_without_precision(own.lower(problem, start))


def test_every_product_of_a_fit_states_its_precision():
    x = jnp.ones((4, 3))
    program = jax.jit(lambda V, b, P: solve_nonnegative(V, b, P, 1e-5, 100))
    assert not products_without_precision(program.lower(x, x, jnp.eye(3)))


def test_a_fit_inside_a_users_own_jit():
    P = jnp.eye(3) + 0.1
    b = jnp.asarray([[1.0, -1.0, 0.5]])
    outside, _ = solve_nonnegative(jnp.zeros_like(b), b, P, 1e-6, 100)
    inside, _ = jax.jit(lambda b: solve_nonnegative(jnp.zeros_like(b), b, P, 1e-6, 100))(b)
    np.testing.assert_allclose(inside, outside, rtol=1e-5)
    constant, _ = jax.jit(lambda: solve_nonnegative(jnp.zeros_like(b), b, P, 1e-6, 100))()
    np.testing.assert_allclose(constant, outside, rtol=1e-5)


def test_pefs_of_zero_rows_name_the_cause():
    with pytest.raises(ValueError, match="no gradient reaches any parameter"):
        npeff.Problem.of(dataclasses.replace(planted(n=4).pefs, values=np.zeros_like(planted(n=4).pefs.values)))
