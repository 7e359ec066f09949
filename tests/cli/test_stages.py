"""From a user's file to a report by commands alone; again, resumed, and with what is wrong."""

import contextlib
import json
import shutil

import numpy as np
import pytest

import npeff_jax
from npeff_jax.cli import main
from npeff_jax.report import read_report_data

MODEL = "--model mine.py:network --examples mine.py:examples"
QUIET = "--progress none"


@pytest.fixture(scope="module")
def made_once(tmp_path_factory, user_file):
    """PEFs of both sets, a decomposition and a fit."""
    folder = tmp_path_factory.mktemp("stages")
    (folder / "mine.py").write_text(user_file)
    for command in (
        f"pefs {MODEL} --part 0:30 --out run/pefs {QUIET}",
        f"pefs {MODEL} --part 30: --out run/heldout {QUIET}",
        f"decompose --pefs run/pefs --n-components 3 --out run/components {QUIET}",
        "fit --decomposition run/components --pefs run/heldout --out run/fit.npz",
    ):
        with contextlib.chdir(folder):
            assert main(command.split()) == 0
    return folder / "run"


@pytest.fixture
def made(here, made_once):
    """A copy of it for a test of its own, with the times of its files."""
    return shutil.copytree(made_once, here / "run")


def test_from_a_file_to_a_report(npeff, made):
    code, _, err = npeff(
        f"perturb --decomposition run/components --pefs run/heldout --fit run/fit.npz {MODEL} --part 30: --n-top 3 "
        f"--n-random 5 --out run/selectivity.npz {QUIET}"
    )
    assert code == 0, err
    code, _, err = npeff(f"decompose --pefs run/pefs --n-components 3 --seed 1 --out run/other {QUIET}")
    assert code == 0, err
    code, _out, err = npeff(
        "report --decomposition run/components --pefs run/heldout --fit run/fit.npz --selectivity run/selectivity.npz "
        f"{MODEL} --part 30: --others run/other --traces --out run/report.html --data run/report.json"
    )
    assert code == 0, err
    data = read_report_data(made / "report.json")
    assert data.class_names == ("a", "b", "c")
    assert data.run.n_decomposed == 30
    assert {example.text[0] for example in data.examples.shown} <= {f"input {i}" for i in range(30, 40)}
    first, other = (npeff_jax.load_decomposition(made / name) for name in ("components", "other"))
    np.testing.assert_allclose(
        [component.stability for component in data.components], npeff_jax.compare_runs(first, other).forward, rtol=1e-3
    )
    assert all(len(component.traces) == 1 for component in data.components)
    assert all(component.causal.kl_ratio > 0 for component in data.components if component.top)
    assert "</html>" in (made / "report.html").read_text()
    code, _, err = npeff("export --data run/report.json --out run/top.csv --n-top 2")
    assert code == 0, err
    assert len((made / "top.csv").read_text().splitlines()) <= 1 + 3 * 2


def test_the_commands_do_what_the_library_does(made):
    pefs, heldout = npeff_jax.load_pefs(made / "pefs"), npeff_jax.load_pefs(made / "heldout")
    decomposition = npeff_jax.decompose(pefs, 3, seed=0, progress=False)
    written = npeff_jax.load_decomposition(made / "components")
    np.testing.assert_array_equal(written.coefficients, decomposition.coefficients)
    with np.load(made / "fit.npz") as fit:
        np.testing.assert_array_equal(
            fit["coefficients"], npeff_jax.fit_coefficients(decomposition, heldout).coefficients
        )


def test_pefs_in_half_precision(npeff, made):
    code, _, err = npeff(f"pefs {MODEL} --part :6 --dtype float16 --on-failure skip --out run/half {QUIET}")
    assert code == 0, err
    half, whole = (npeff_jax.load_pefs(made / name) for name in ("half", "pefs"))
    assert half.schema.dtype == "float16"
    np.testing.assert_allclose(half.values, whole.values[:6], atol=1e-3)


def test_again_does_nothing_and_another_says_what_differs(npeff, made):
    stamp = (made / "components").stat().st_mtime_ns
    code, out, _ = npeff(f"decompose --pefs run/pefs --n-components 3 --out run/components {QUIET}")
    assert (code, out) == (0, "run/components is there already, made by this very command\n")
    code, _, err = npeff(f"decompose --pefs run/pefs --n-components 2 --seed 4 --out run/components {QUIET}")
    assert code == 2
    assert "another --n-components, --seed; choose another --out, or --overwrite it" in err
    assert (made / "components").stat().st_mtime_ns == stamp
    code, _, err = npeff(f"decompose --pefs run/pefs --n-components 2 --out run/components --overwrite {QUIET}")
    assert code == 0, err
    assert npeff_jax.load_decomposition(made / "components").n_components == 2


def test_a_record_of_an_earlier_version_lacks_an_option(npeff, made):
    """It was at its default then, which only another value differs from."""
    place = made / "components.record.json"
    record = json.loads(place.read_text())
    del record["arguments"]["restarts"]
    place.write_text(json.dumps(record))
    code, out, err = npeff(f"decompose --pefs run/pefs --n-components 3 --out run/components {QUIET}")
    assert (code, out) == (0, "run/components is there already, made by this very command\n"), err
    code, _, err = npeff(f"decompose --pefs run/pefs --n-components 3 --restarts 2 --out run/components {QUIET}")
    assert code == 2
    assert "another --restarts;" in err


def test_an_option_in_a_group_may_be_lacking_too(npeff, made):
    """``--sample-seed`` and ``--min-probability`` stand in a dataclass of options."""
    place = made / "pefs.record.json"
    record = json.loads(place.read_text())
    del record["arguments"]["sample_seed"], record["arguments"]["min_probability"]
    place.write_text(json.dumps(record))
    code, out, err = npeff(f"pefs {MODEL} --part 0:30 --out run/pefs {QUIET}")
    assert (code, out) == (0, "run/pefs is there already, made by this very command\n"), err
    code, _, err = npeff(f"pefs {MODEL} --part 0:30 --min-probability 0.1 --out run/pefs {QUIET}")
    assert code == 2
    assert "another --min-probability;" in err


def test_the_best_of_several_starts(npeff, made):
    """The command tries them as the function does, and says what losses they came to."""
    code, out, err = npeff(
        f"decompose --pefs run/pefs --n-components 3 --seed 5 --restarts 3 --out run/components --overwrite {QUIET}"
    )
    assert code == 0, err
    assert "; the best of 3 starts, whose losses on " in out
    expected = npeff_jax.decompose(npeff_jax.load_pefs(made / "pefs"), 3, seed=5, restarts=3, progress=False)
    written = npeff_jax.load_decomposition(made / "components")
    np.testing.assert_array_equal(written.coefficients, expected.coefficients)
    assert written.settings["restarts"]["seeds"] == [5, 6, 7]
    code, _, err = npeff(f"decompose --pefs run/pefs --n-components 3 --restarts 0 --out run/none {QUIET}")
    assert code == 2
    assert "restarts=0 is out of range" in err


def test_a_changed_input_is_noticed(npeff, made):
    npeff(f"decompose --pefs run/pefs --n-components 2 --out run/components --overwrite {QUIET}")
    code, _, err = npeff("fit --decomposition run/components --pefs run/heldout --out run/fit.npz")
    assert code == 2
    assert "another content of --decomposition" in err


def test_records_run_again(npeff, made):
    npeff(f"decompose --pefs run/pefs --n-components 3 --out run/components --overwrite {QUIET}")  # from this folder
    record = json.loads((made / "components.record.json").read_text())
    assert record["command"] == "decompose"
    assert record["arguments"]["n_components"] == 3
    assert record["npeff_jax"] == npeff_jax.__version__
    code, _, err = npeff("rerun --record run/components.record.json --out run/again")
    assert code == 0, err
    first, second = (npeff_jax.load_decomposition(made / name) for name in ("components", "again"))
    np.testing.assert_array_equal(first.pseudo_fishers[:], second.pseudo_fishers[:])


def test_expanding_on_wrong_predictions(npeff, made):
    code, _, err = npeff(
        f"expand --decomposition run/components --pefs run/pefs --only-wrong --n-new 1 --out run/more {QUIET}"
    )
    assert code == 0, err
    more = npeff_jax.load_decomposition(made / "more")
    assert (more.n_components, more.n_frozen) == (4, 3)
    pefs = npeff_jax.load_pefs(made / "pefs")
    assert len(more.coefficients) == (np.asarray(pefs.logits).argmax(1) != np.asarray(pefs.labels)).sum()


def test_npz_examples_give_the_same(npeff, made):
    import sys

    inputs, labels, _ = sys.modules["mine"].examples()
    np.savez("inputs.npz", x=inputs, labels=labels)
    code, _, err = npeff(f"pefs --model mine.py:network --examples inputs.npz --part 0:30 --out run/npz {QUIET}")
    assert code == 0, err
    first, second = (npeff_jax.load_pefs(made / name) for name in ("pefs", "npz"))
    np.testing.assert_array_equal(first.values[:], second.values[:])
    np.testing.assert_array_equal(first.labels, second.labels)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"pefs --model nowhere:network --examples mine.py:examples --out x {QUIET}", "cannot import nowhere"),
        (f"pefs --model mine.py:missing --examples mine.py:examples --out x {QUIET}", "has no function missing"),
        (f"pefs --model mine.py:not_a_model --examples mine.py:examples --out x {QUIET}", "returned int; expected"),
        (f"pefs --model some/where --examples mine.py:examples --out x {QUIET}", "neither package.module:factory"),
        (f"pefs {MODEL} --part 50:60 --out x {QUIET}", "--part 50:60 selects none of the 40 examples"),
        (f"pefs {MODEL} --flavour diagonal --max-rows 2 --out x {QUIET}", "--max-rows has no effect with --flavour"),
        (f"decompose --pefs nowhere --n-components 2 --out x {QUIET}", "nowhere"),
        ("rerun --record mine.py", "mine.py is not the record of a command"),
        ("report --decomposition nowhere --out x --traces", "--traces needs --model and --examples"),
    ],
)
def test_errors_are_one_sentence_and_exit_code_2(npeff, here, command, message):
    code, _out, err = npeff(command)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("npeff: ")
    assert not (here / "x").exists()


def test_debug_shows_where(npeff):
    with pytest.raises(ValueError, match="cannot import nowhere"):
        npeff(f"pefs --model nowhere:network --examples mine.py:examples --out x {QUIET} --debug")


@pytest.mark.parametrize(
    "command", ["pefs", "decompose", "fit", "expand", "perturb", "report", "export", "rerun", "plan"]
)
def test_help_teaches(npeff, command):
    code, out, _ = npeff(f"{command} --help")
    assert code == 0
    assert len(out) > 400


def test_components_by_marks_and_a_repair(npeff, here):
    for command in (
        f"pefs {MODEL} --part 0:30 --out run/pefs {QUIET}",
        f"decompose --pefs run/pefs --n-components 3 --out run/plain {QUIET}",
    ):
        code, _, err = npeff(command)
        assert code == 0, err
    (here / "marks.csv").write_text("mine\n" + "".join(f"{'?' if i % 3 else i % 2}\n" for i in range(30)))
    code, out, err = npeff(
        f"decompose --pefs run/pefs --n-components 3 --tunings marks.csv --follow 0.5 --out run/named {QUIET}"
    )
    assert code == 0, err
    assert "component 0 is 'mine'" in out
    found = npeff_jax.load_decomposition(here / "run" / "named")
    assert found.names == {0: "mine"}
    assert not found.coefficients[[0, 6, 12, 18, 24], 0].any()
    code, _, err = npeff(f"decompose --pefs run/pefs --n-components 3 --tunings nowhere.csv --out run/n {QUIET}")
    assert code == 2
    assert "nowhere.csv" in err
    code, out, err = npeff(f"repair {MODEL} --decomposition run/named --out run/repair.npz --nats 0.02")
    assert code == 0, err
    assert "points" in out
    with np.load(here / "run" / "repair.npz") as written:
        assert written["components"].tolist() == [0, 1, 2]
        assert written["groups"].tolist() == ["all", "wrong before", "right before"]
        assert written["weights"].shape == (3,)
