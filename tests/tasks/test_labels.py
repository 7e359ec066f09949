"""Labels are checked where they enter, and mean the model's classes: tables, image folders, data sets."""

import bz2
import dataclasses
import gzip
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax import tasks

pytestmark = pytest.mark.fast

SENTIMENT = ("positive", "Negative", "neutral")


class Encode:
    """Encodes nothing much; knows the model's classes as a checkpoint's processor does."""

    def __init__(self, label_names=None):
        self.label_names = label_names

    def __call__(self, items, pairs=None):
        if isinstance(items[0], str):
            return {"ids": np.array([[len(text)] for text in items], np.int32)}
        return {"pixel_values": np.stack([np.asarray(image.resize((2, 2)), np.float32) for image in items])}


def read(file, names=None, model=None, **options):
    return tasks.read_table(file, Encode(model), tasks.Columns("text", label_names=names), **options)


def table(folder, *labels, name="t.csv", separator=","):
    lines = [f"text{separator}label", *(f"t{i}{separator}{label}" for i, label in enumerate(labels))]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("missing", ["", " ", "NaN", "None", "null", "n/a", "<NA>"])
def test_a_cell_without_a_label_is_named(tmp_path, missing):
    for labels in (("0", missing, "1"), ("no", missing, "yes")):
        with pytest.raises(ValueError, match="row 2, line 3 has no label"):
            read(table(tmp_path, *labels))
    kept = tasks.read_table(
        table(tmp_path, "0", missing, "1"), Encode(), tasks.Columns("text", skip=(missing.strip(),))
    )
    assert kept.display == ["t0", "t2"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("0", "-100"), "row 2, line 3 has the label -100; labels must not be negative; leave out .* unlabelled"),
        (("0", "0.5"), "row 2, line 3 has the label 0.5; expected a name, or the number"),
        (("0", str(2**40)), f"row 2, line 3 has the label {2**40}; expected the number of a class"),
        (("0", "9" * 400), "row 2, line 3 has the label 99"),
        (("no", "1"), "row 1, line 2 has the label 'no' and row 2, line 3 a number"),
    ],
)
def test_numbers_that_are_no_classes(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        read(table(tmp_path, *labels))


def test_numbers_written_with_a_point_are_numbers(tmp_path):
    """Twelve classes as pandas writes a column with a gap: in sorted order of the texts 10.0 would come second."""
    data = read(table(tmp_path, *(f"{i}.0" for i in range(12))))
    np.testing.assert_array_equal(data.labels, np.arange(12))
    with pytest.raises(ValueError, match="row 12, line 13 has the label 11; expected 0 to 2"):
        read(table(tmp_path, *(f"{i % 3}.0" for i in range(11)), "11.0"), model=SENTIMENT)


def test_json_and_its_null_true_and_nan(tmp_path):
    file = tmp_path / "t.jsonl"

    def write(*labels):
        file.write_text("\n".join(json.dumps({"text": "x", "label": label}) for label in labels))
        return file

    np.testing.assert_array_equal(read(write(True, False, 2.0)).labels, [1, 0, 2])
    for missing in (None, math.nan, ""):
        with pytest.raises(ValueError, match="row 2, line 2 has no label"):
            read(write(0, missing))
    with pytest.raises(ValueError, match="row 1, line 1 has a label of type list"):
        read(write([0]))
    file.write_text('{"text": NaN, "label": 0}\n{"text": null, "label": 1}\n')
    assert read(file).display == ["", ""]
    file.write_text('{"text": ["a"], "label": 0}\n')
    with pytest.raises(ValueError, match="row 1, line 1, column 'text' holds a list; expected a text"):
        read(file)
    file.write_text('{"text": "a \\ud800", "label": 0}\n')
    with pytest.raises(ValueError, match="row 1, line 1, column 'text': the text has half of a surrogate pair"):
        read(file)


def test_names_are_numbered_as_the_model_does(tmp_path):
    data = read(table(tmp_path, "neutral", "POSITIVE", "negative"), model=SENTIMENT)
    np.testing.assert_array_equal(data.labels, [2, 0, 1])
    assert data.label_names == SENTIMENT
    given = read(table(tmp_path, "1", "0", "1"), names=("negative", "positive"), model=SENTIMENT)
    np.testing.assert_array_equal(given.labels, [0, 1, 0])  # 1 means "positive" in the column, and 0 to the model
    many = ("tench, Tinca tinca", "goldfish, Carassius auratus")
    np.testing.assert_array_equal(read(table(tmp_path, "goldfish", "tench"), model=many).labels, [1, 0])


def test_names_that_cannot_be_matched_are_both_listed(tmp_path):
    file = table(tmp_path, "good", "bad", "good")
    with pytest.raises(ValueError, match=r"\(bad, good\) cannot be matched to the model's \(positive, Negative"):
        read(file, model=SENTIMENT)
    with pytest.raises(ValueError, match=r"\(bad, good\) cannot .* \(LABEL_0, LABEL_1\) by name; pass label_names"):
        read(file, model=("LABEL_0", "LABEL_1"))
    with pytest.raises(ValueError, match="cannot be matched"):  # half of them mean another class than their number says
        read(file, names=("bad", "positive", "good"), model=SENTIMENT)
    np.testing.assert_array_equal(read(file, names=("good", "bad"), model=SENTIMENT).labels, [0, 1, 0])
    np.testing.assert_array_equal(read(file).labels, [1, 0, 1])  # nothing is known of the model: sorted


def test_sorted_names_do_not_depend_on_how_many_rows_are_read(tmp_path):
    file = table(tmp_path, "b", "c", "a", "b")
    parts = [read(file, limit=2), read(file, start=2)]
    assert [part.label_names for part in parts] == [("a", "b", "c")] * 2
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), [1, 2, 0, 1])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_and_separators(tmp_path, encoding):
    for separator in (",", ";", "\t"):
        file = table(tmp_path, "1", "0", separator=separator)
        file.write_text(file.read_text(), encoding=encoding)
        np.testing.assert_array_equal(read(file).labels, [1, 0])


def test_compressed_files(tmp_path):
    content = table(tmp_path, "1", "0").read_bytes()
    for ending, compress in ((".gz", gzip.compress), (".bz2", bz2.compress)):
        file = tmp_path / f"t.csv{ending}"
        file.write_bytes(compress(content))
        np.testing.assert_array_equal(read(file).labels, [1, 0])
    for damaged in (gzip.compress(content)[:-12], content):
        (tmp_path / "d.csv.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"d\.csv\.gz is not a \.gz file, or is damaged"):
            read(tmp_path / "d.csv.gz")


def test_other_encodings_are_hinted_at(tmp_path):
    file = tmp_path / "t.csv"
    file.write_bytes("text,label\ncafé,1\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"cannot be read as a table in UTF-8 .*; pass its encoding, encoding='cp1252'"
    ):
        read(file)
    assert read(file, encoding="latin-1").display == ["café"]
    with pytest.raises(ValueError, match="encoding='klingon' is not known"):
        read(file, encoding="klingon")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na, b,1\n", "row 1, line 2: 3 cells, the header has 2; put texts in quotation marks"),
        ('text,label\n"a,1\nb,0\n', "cannot be read as a table"),  # an open quotation mark swallows the rest
        ("text,label,label\na,0,1\n", "has 2 columns named 'label'"),
    ],
)
def test_shifted_cells(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "t.csv")


@pytest.fixture
def images(tmp_path):
    image = pytest.importorskip("PIL.Image")

    def make(*names):
        for level, name in enumerate(names):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            image.new("RGB", (8, 8), (level, level, level)).save(tmp_path / name, format="PNG")
        return tmp_path

    return make


def test_hidden_folders_and_files_are_no_data(images):
    folder = images(
        "cat/a.png", "dog/b.png", ".ipynb_checkpoints/c.png", "__MACOSX/d.png", "cat/._a.png", "dog/.hidden.png"
    )
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "cat" / "Thumbs.db").write_bytes(b"\0")
    data = tasks.read_image_folder(folder, Encode(), progress=False)
    assert data.label_names == ("cat", "dog")
    np.testing.assert_array_equal(data.labels, [0, 1])
    np.testing.assert_array_equal(data.examples[:]["pixel_values"][:, 0, 0, 0], [0, 1])


def test_folders_are_numbered_as_the_models_classes(images):
    folder = images("cat/a.png", "dog/b.png")
    data = tasks.read_image_folder(folder, Encode(("dog", "bird", "Cat")), progress=False)
    np.testing.assert_array_equal(data.labels, [2, 0])
    assert data.label_names == ("dog", "bird", "Cat")
    with pytest.raises(ValueError, match=r"\(cat, dog\) cannot be matched to the model's \(n01, n02\)"):
        tasks.read_image_folder(folder, Encode(("n01", "n02")), progress=False)
    given = tasks.read_image_folder(folder, Encode(("n01", "n02")), label_names=("dog", "cat"), progress=False)
    np.testing.assert_array_equal(given.labels, [0, 1])
    assert given.label_names == ("dog", "cat")


def test_folders_that_are_numbers(images):
    folder = images(*(f"{i}/a.png" for i in range(12)))
    data = tasks.read_image_folder(folder, Encode(), progress=False)
    np.testing.assert_array_equal(data.labels, np.arange(12))  # "10" is not the third
    assert data.label_names[:3] == ("0", "1", "2")
    named = tasks.read_image_folder(folder, Encode(tuple(f"class {i}" for i in range(12))), progress=False)
    assert named.label_names[10] == "class 10"
    with pytest.raises(ValueError, match="has the folders 0 to 11, the model 3 classes"):
        tasks.read_image_folder(folder, Encode(SENTIMENT), progress=False)
    (folder / "0" / "a.png").rename(folder / "1" / "b.png")
    (folder / "0").rmdir()
    with pytest.raises(ValueError, match="are numbers, but not 0 to 10; pass label_names"):
        tasks.read_image_folder(folder, Encode(), progress=False)


def test_an_empty_folder_would_shift_the_classes(images):
    folder = images("cat/a.png", "dog/b.png")
    (folder / "archive").mkdir()
    with pytest.raises(ValueError, match="archive has no images, so that it may be no class; remove it"):
        tasks.read_image_folder(folder, Encode(), progress=False)


def test_images_are_decoded_once_while_they_fit(images, monkeypatch):
    data = tasks.read_image_folder(images("cat/a.png", "cat/b.png", "dog/c.png"), Encode(), progress=False)
    seen = []
    monkeypatch.setattr(
        data.examples, "_processor", lambda given: seen.append(len(given)) or Encode()(given), raising=True
    )
    first = data.examples[0:2]["pixel_values"]
    again = data.examples[np.array([2, 1, 0])]["pixel_values"]
    assert seen == [2, 1]
    np.testing.assert_array_equal(again[[2, 1]], first)
    np.testing.assert_array_equal(again[:, 0, 0, 0], [2, 1, 0])


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, -100], None, r"labels\[2\]: label -100; labels must not be negative"),
        ([0, 1, 2], ("a", "b"), r"labels\[2\]: label 2; expected 0 to 1"),
        ([0, 1, 2**40], None, r"labels\[2\]: label 1099511627776; expected the number of a class"),
        ([0, 1, math.nan], None, r"labels\[2\] is nan; expected the number of a class"),
        (["a", "b", None], None, r"labels\[2\] has no label"),
        (["a", "b", "c"], ("a", "b"), r"labels\[2\] has the label 'c'; expected one of a, b"),
        ([0j, 1j, 2j], None, "labels has dtype complex128; expected integers"),
        ([0, 1], None, r"labels has shape \(2,\); expected \(3,\)"),
        (np.ma.array([0, 1, 2], mask=[0, 0, 1]), None, "masked array"),
    ],
)
def test_labels_of_a_data_set(labels, names, message):
    with pytest.raises(ValueError, match=message):
        tasks.Dataset({"x": np.zeros((3, 2))}, labels, list("abc"), names)


def test_a_data_set_by_the_models_names():
    model = npeff.Model(lambda p, x: p["w"][x], {"w": jnp.eye(3)}, label_names=SENTIMENT)
    for labels in ([0, 1, 0], ["neutral", "positive", "neutral"]):
        data = tasks.Dataset(np.arange(3), labels, None, ("neutral", "positive"))
        matched = tasks.match_labels(data, model)
        np.testing.assert_array_equal(matched.labels, [2, 0, 2])
        assert matched.label_names == SENTIMENT
    unnamed = dataclasses.replace(model, label_names=("LABEL_0", "LABEL_1", "LABEL_2"))
    np.testing.assert_array_equal(tasks.match_labels(data, unnamed).labels, [0, 1, 0])
    with pytest.raises(ValueError, match="cannot be matched to the model's"):
        tasks.match_labels(data, dataclasses.replace(model, label_names=("a", "b", "c")))
    with pytest.raises(ValueError, match=r"labels\[1\]: label 5; expected 0 to 2"):
        tasks.match_labels(tasks.Dataset(np.arange(2), [0, 5]), model)
    with pytest.raises(ValueError, match=r"labels\[0\]: label 1099511627776; expected 0 to 2"):
        matched.relabel({0: 2**40, 2: 2**40}, SENTIMENT)
    with pytest.raises(ValueError, match="display has 2 entries; expected one for each of the 3"):
        tasks.Dataset(np.arange(3), None, ["a", "b"])


def test_checking_labels_that_the_model_has_no_class_for():
    model = npeff.Model(lambda p, x: p["w"][x], {"w": jnp.eye(3)})
    with pytest.raises(ValueError, match=r"labels\[1\]: label 7; expected 0 to 2"):
        tasks.check_labels(model, tasks.Dataset(np.arange(3), [0, 7, 2]))
    check = tasks.check_labels(model, tasks.Dataset(np.arange(3), [0, 0, 3], None, ("a", "b", "c", "d")))
    assert check.confusion.shape == (4, 3)
    assert check.chance == pytest.approx(2 / 9)  # label 0 twice in three, predicted once; label 3 never predicted
