"""What is handed to reports by mistake is said in one sentence, raised in this package."""

import pathlib
import traceback

import pytest

import npeff_jax
from npeff_jax.report import Shown
from npeff_jax.report._write import _check_choices

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"title": 3}, "title is of type int; expected a text"),
        ({"about": "my model"}, r"about is of type str; expected report\.About\(model="),
        ({"shown": 5}, r"shown is of type int; expected report\.Shown"),
        ({"class_names": "abc"}, "class_names='abc' is one text; expected a list of names"),
        ({"marks": [[1]]}, r"marks holds a int; expected the result of report\.mark_examples"),
        ({"marks": [7]}, r"marks holds a int; expected the result of report\.mark_examples"),
        ({"traces": [("x",)]}, r"traces holds a str; expected the result of report\.trace_components"),
    ],
)
def test_choices_of_another_type(options, message):
    """By `_check_choices` itself: where these tests run, annotations are checked before it is reached."""
    right = {"title": "x", "class_names": ["a"], "marks": [()], "traces": None, "about": None, "shown": Shown()}
    _check_choices(**right)
    with pytest.raises(TypeError, match=message):
        _check_choices(**right | options)


def test_swapped_arguments(results, tmp_path):
    for arguments in ((results.decomposition, tmp_path / "x.html"), (["a"], results.decomposition)):
        with pytest.raises(TypeError, match="expected the file to write first, then the decomposition") as caught:
            npeff_jax.write_report.__wrapped__(*arguments) if hasattr(npeff_jax.write_report, "__wrapped__") else (
                npeff_jax.write_report(*arguments)
            )
        last = traceback.extract_tb(caught.value.__traceback__)[-1]
        assert pathlib.Path(npeff_jax.__file__).parent in pathlib.Path(last.filename).parents
