"""What people pass by mistake: one sentence each, raised in this package; without the tests' own checks of types."""

import json
import subprocess
import sys

import pytest

CASES = {
    "swapped model and decomposition": ("component_direction(d, model, 0)", "model is of type Decomposition"),
    "swapped PEFs and decomposition": ("selectivity(model, pefs, d, x, fit=d)", "decomposition is a Pefs; expected"),
    "swapped examples and PEFs": (
        "selectivity(model, d, x, pefs, fit=d)",
        "examples is of type Pefs",
    ),
    "no fit": ("selectivity(model, d, pefs, x, fit=None)", "fit is a NoneType; expected"),
    "coefficients as fit": ("selectivity(model, d, pefs, x, fit=d.coefficients)", "fit is a ndarray; expected"),
    "a string as edit": ("selectivity(model, d, pefs, x, fit=d, edits='direction')", "expected a Edit: D"),
    "a number of top examples": ("selectivity(model, d, pefs, x, fit=d, n_top=2.5)", "n_top=2.5 is no whole number"),
    "a fit for coefficients": (
        "top_examples(d, 0, 3)",
        "coefficients is a Decomposition; pass its array",
    ),
    "one run": ("stability(d)", "runs is a Decomposition; expected a list of two or more runs"),
    "one run in a list": ("stability([d])", "expected two or more runs of one shape"),
    "no runs": ("stability([])", "expected two or more runs of one shape (n, r), got 0"),
    "numbers as runs": ("stability([1, 2])", "a run is a int; expected a decomposition, a fit, or coefficients"),
    "lists as runs": ("compare_runs([[1.0]], [[1.0]])", "a run is a list"),
    "a flat direction": ("perturbed_kl(model, x, [np.ones(12)])", "is a flat vector of shape (12,)"),
    "a matrix of directions": ("perturbed_kl(model, x, np.ones((2, 12)))", "directions is an array of shape (2, 12)"),
    "a single direction": ("perturbed_kl(model, x, model.params)", "put it in a list"),
    "swapped model and examples": ("perturbed_kl(x, model, [model.params])", "model is of type ndarray"),
    "a floor by a wrong name": ("DiagonalEdit(floor='raise')", "floor='raise' is none of Floor.RAISED, Floor.CAPPED"),
    "an estimate by name": ("dataset_fisher(model, x, 'sampling')", "expected a Estimate: Expectation(...), Sampling"),
    "labels that are none": ("find_repairs(model, [model.params], x, y - 100, choosing=half)", "labels has -100"),
    "indices that choose": (
        "find_repairs(model, [model.params], x, y, choosing=np.arange(6))",
        "expected a Boolean mask",
    ),
    "tunings as a dict": ("npeff_jax.decompose(pefs, 2, tunings={'a': half})", "pass a list of Tuning(name, marks)"),
    "marks without a name": ("npeff_jax.decompose(pefs, 2, tunings=[half])", "pass a list of Tuning(name, marks)"),
    "positions as a group": (
        "compare_moves(model, {'a': model.params}, x, y, groups={'g': np.arange(3)})",
        "group 'g' has dtype int64; expected a Boolean mask",
    ),
    "moves in a list": ("compare_moves(model, [model.params], x, y)", "pass a dict of name to pytree"),
    "a repair without labels": ("repair(model, d, x, None)", "labels is None"),
    "a class by name": ("steer(model, {'a': model.params}, x, 'yes')", "behaviour='yes' is no whole number"),
    "no directions": ("find_repairs(model, [], x, y, choosing=half)", "directions is empty"),
    "swapped coefficients": (
        "predicted_kl(model, d, pefs.norms, d.coefficients, model.params)",
        "coefficients have shape",
    ),
    "variables as a list": ("search_concepts(d.coefficients, [half])", "variables is a list; expected {name: truth"),
    "further runs as a list": (
        "audit(model, d, other, z, fit=npeff_jax.fit_coefficients(d, other), runs=[d])",
        "runs is a list; pass {name:",
    ),
    "too few class names": (
        "audit(model, d, other, z, fit=npeff_jax.fit_coefficients(d, other), class_names=['a'])",
        "class_names=['a']; expected a name for each of the model's 4 classes",
    ),
    "a decomposition as the decomposed PEFs": (
        "audit(model, d, other, z, fit=npeff_jax.fit_coefficients(d, other), decomposed=d)",
        "decomposed is a Decomposition; pass the PEFs",
    ),
    "a text as what is readable": (
        "audit(model, d, other, z, fit=npeff_jax.fit_coefficients(d, other), n_top=3, readable='abc', progress=False)",
        "readable is a str; expected a text per example",
    ),
    "weights that are text": ("DiagonalEdit(weights='half')", "weights='half' is no list of numbers"),
    "a precision that there is not": ("Passes(precision='double')", "precision='double'; expected one of"),
    "a tolerance in words": ("npeff_jax.Stopping(tolerance='small')", "tolerance='small' is no number"),
    "a switch in words": ("npeff_jax.DampedALS(stiefel='no')", "stiefel='no' is a str; expected True or False"),
    "a scale in words": ("perturb(model, model.params, 'far')", "scale='far' is no number"),
    "a scale that is not finite": (
        "predicted_kl(model, d, d.coefficients, pefs.norms, model.params, np.nan)",
        "scale=nan",
    ),
    "scales in words": ("perturbed_kl(model, x, [model.params], 'far')", "scales='far' is no list of numbers"),
    "a component by name": ("d.pseudo_fisher('first')", "component='first' is no whole number"),
    "groups of parameters in a list": ("Tracer(traced, ['w'])", "groups is a list; expected {group: names"),
    "a direction that is not finite": (
        "Tracer(traced)({'w': model.params['w'] * np.nan}, x[0])",
        "non-finite value at 'w'",
    ),
    "a batch for an example": ("Tracer(traced)(model.params, x)", "returned (12, 4) for one example"),
    "held-out PEFs of another kind": ("scan(pefs, [2], heldout=d)", "heldout is of type Decomposition; expected Pefs"),
    "runs without components": ("compare_runs(np.zeros((12, 0)), d)", "coefficients have shape (12, 0)"),
    "identifiers as owners": ("npeff_jax.Problem.from_rows(np.eye(2), [0, 10**8])", "owner has example 100000000"),
    "complex rows": ("npeff_jax.Problem.from_rows(np.eye(2) * 1j, [0, 1])", "A has shape (2, 2) and dtype complex128"),
    "devices for a mesh": ("Passes(mesh=[0])", "mesh is of type list; pass npeff_jax.make_mesh"),
    "rows of a model in half batches": ("npeff_jax.model_rows(model, x, batch_size=0.5)", "batch_size=0.5 is no whole"),
    "a step of a progress bar": ("npeff_jax.compute_pefs(model, x, progress=1)", "progress=1 is a int; pass True"),
    "examples of another width": (
        "npeff_jax.compute_pefs(model, x[:, :2], progress=False)",
        "logits_fn raised TypeError for one example, an array (2,) float32",
    ),
    "a list of examples": (
        "npeff_jax.compute_pefs(model, list(x), progress=False)",
        "stack the examples of a list: jax.tree.map",
    ),
    "a function that branches": (
        "npeff_jax.compute_pefs(npeff_jax.Model(lambda p, e: e @ p['w'] if e[0] > 0 else e, model.params), x)",
        "raised TracerBoolConversionError for one example",
    ),
    "steps of other shapes": ("similarity_to_final([np.ones((3, 2)), np.ones((3, 3))])", "expected one or more arrays"),
}

HEAD = """
import json, traceback
import jax.numpy as jnp, numpy as np, npeff_jax
from npeff_jax.evaluation import *
from npeff_jax.perturbation import *
rng = np.random.default_rng(0)
x = rng.normal(size=(12, 3)).astype(np.float32)
model = npeff_jax.Model(lambda p, e: e @ p["w"], {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)})
pefs = npeff_jax.compute_pefs(model, x, progress=False)
d = npeff_jax.decompose(pefs, 2, progress=False)
z = -x
other = npeff_jax.compute_pefs(model, z, progress=False)
traced = npeff_jax.Model(model.logits_fn, model.params, intermediates_fn=lambda p, e: {"h": e @ p["w"]})
half, y = np.arange(12) < 6, np.zeros(12, np.int64)
number = np.int64
selectivity(model, d, pefs, x, fit=d, n_top=number(3), seed=number(1), norm=np.float32(0.1), progress=False,
            nulls=Nulls(number(9), number(1)), passes=Passes(number(4)), components=np.array([1], np.int32))
dataset_fisher(model, x, Sampling(number(2), number(0)), batch_size=number(5))
DiagonalEdit(kl_range=np.array([0.1, 0.2]), max_delta=np.float32(1), floor="capped")
for name, call in json.loads(CASES).items():
    try:
        eval(call)
        said = "accepted without a word"
    except Exception as error:
        inside = "npeff_jax" in traceback.extract_tb(error.__traceback__)[-1].filename
        said = f"{type(error).__name__}: {error}" if inside else f"raised outside: {error!r}"
    print(json.dumps([name, said]))
"""


@pytest.fixture(scope="module")
def said():

    code = f"CASES = {json.dumps({name: call for name, (call, _) in CASES.items()})!r}\n" + HEAD
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_sentence(name, said):
    assert CASES[name][1] in said[name]
    assert said[name].startswith(("ValueError", "TypeError", "ExampleError"))
    assert "\n" not in said[name]
    assert len(said[name]) < 320
