"""Data sets as files: formats, labels, bad input, and labels that a model numbers differently."""

import csv
import dataclasses
import gzip
import json

import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax import tasks

pytestmark = pytest.mark.fast

ROWS = [
    {"sentence1": "a man is sleeping", "sentence2": "a man is not running", "gold_label": "entailment"},
    {"sentence1": 'a "dog" runs', "sentence2": "a cat, outside", "gold_label": "-"},
    {"sentence1": "the woman is outside", "sentence2": "the woman is inside", "gold_label": "contradiction"},
    {"sentence1": "a dog", "sentence2": "the dog is running", "gold_label": "neutral"},
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"file": ""}, "file='' is no path; expected a local one"),
        ({"file": "s3://bucket/t.csv"}, "file='s3://bucket/t.csv' has the scheme s3://"),
        ({"processor": "bert"}, "processor='bert' is a str; expected a function"),
        ({"columns": "text"}, "columns='text' is a str; pass Columns"),
        ({"limit": 2.5}, "limit=2.5 is no whole number"),
        ({"limit": True}, "limit=True is no whole number"),
        ({"start": -1}, "start=-1 is out of range"),
    ],
)
def test_arguments_of_a_reader(tmp_path, arguments, message):
    (tmp_path / "t.csv").write_text("text,label\na,0\nb,1\n")
    read = getattr(tasks.read_table, "__wrapped__", tasks.read_table)
    usual = {"file": tmp_path / "t.csv", "processor": Lengths(), "columns": tasks.Columns("text")}
    with pytest.raises((TypeError, ValueError), match=message):
        read(**(usual | arguments))


def test_columns_and_names_that_are_one_text():
    for fields in ({"label_names": "ab"}, {"skip": "-"}, {"text": 3}, {"text": "a", "label": 1}):
        with pytest.raises(TypeError, match=f"{list(fields)[-1]}="):
            _made(tasks.Columns, **({"text": "text"} | fields))
    with pytest.raises(TypeError, match="label_names='xyz' is one text"):
        _made(tasks.Dataset, examples={"x": np.zeros((3, 2))}, label_names="xyz")
    with pytest.raises(ValueError, match="has a name twice"):
        tasks.Dataset({"x": np.zeros((3, 2))}, np.arange(3), label_names=("x", "x", "y"))
    with pytest.raises(IndexError, match="rows has positions from 9 to 9; there are 3"):
        tasks.Dataset({"x": np.zeros((3, 2))}, np.arange(3)).subset([9])


def _made(kind, **fields):
    """An object without the type checks of the test run, which users do not have."""
    new = object.__new__(kind)
    for field in dataclasses.fields(kind):
        object.__setattr__(new, field.name, fields.get(field.name, field.default))
    new.__post_init__()
    return new


def test_a_text_longer_than_the_csv_readers_limit(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n" + "word " * 40_000 + ",1\n")
    usual = csv.field_size_limit()
    found = tasks.read_table(tmp_path / "t.csv", Lengths(), tasks.Columns("text"))
    assert found.examples["input_ids"].tolist() == [[40_000]]
    assert csv.field_size_limit() == usual


def test_an_image_folder_by_a_relative_path(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    monkeypatch.chdir(tmp_path)
    found = tasks.read_image_folder(".", Thumbs(), progress=False)
    monkeypatch.chdir("/")
    assert found.examples[0:2]["pixel_values"].shape == (2, 2, 2, 3)
    with pytest.raises(ValueError, match="thumbnail=0 is out of range"):
        tasks.read_image_folder(tmp_path, Thumbs(), thumbnail=0, progress=False)


class Lengths(npeff.models.TextProcessor):
    """Counts words instead of looking them up: readers need no real tokenizer."""

    def __init__(self):
        super().__init__(None, 4)

    def __call__(self, texts, pairs=None):
        counts = [[len(text.split()) for text in column] for column in (texts, pairs) if column is not None]
        return {"input_ids": np.array(counts, np.int32).T}


class Thumbs(npeff.models.ImageProcessor):
    def __init__(self):
        super().__init__(None)

    def __call__(self, images):
        return {"pixel_values": np.stack([np.asarray(image.resize((2, 2)), np.float32) for image in images])}


def write(folder, ending, rows=ROWS):
    file = folder / f"data{ending}"
    if ending == ".jsonl":
        file.write_text("\n".join(json.dumps(row | {"other": [1]}) for row in rows) + "\n")
    elif ending == ".parquet":
        pa = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        pa.write_table(pyarrow.Table.from_pylist(rows), file)
    elif ending == ".csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        cells = [list(rows[0])] + [list(row.values()) for row in rows]
        file.write_text("\n".join("\t".join(line) for line in cells) + "\n")
    return file


@pytest.mark.parametrize("ending", [".jsonl", ".tsv", ".txt", ".csv", ".parquet"])
def test_every_format_gives_the_same_examples(tmp_path, ending):
    data = tasks.read_snli(write(tmp_path, ending), Lengths())
    np.testing.assert_array_equal(data.labels, [0, 2, 1])
    assert data.display[1] == ("the woman is outside", "the woman is inside")
    np.testing.assert_array_equal(data.examples["input_ids"], [[4, 5], [4, 4], [2, 4]])
    assert data.label_names == ("entailment", "neutral", "contradiction")
    later = tasks.read_snli(tmp_path / f"data{ending}", Lengths(), start=1, limit=1)
    assert later.display == data.display[1:2]  # start counts examples that are kept


def test_qqp_and_quotation_marks_in_tab_separated_texts(tmp_path):
    rows = [
        {"id": "0", "question1": 'how to "swim ?', "question2": "why swim ?", "is_duplicate": "0"},
        {"id": "1", "question1": "how to cook ?", "question2": 'how" to cook ?', "is_duplicate": "1"},
    ]
    data = tasks.read_qqp(write(tmp_path, ".tsv", rows), Lengths())
    assert data.display == [('how to "swim ?', "why swim ?"), ("how to cook ?", 'how" to cook ?')]
    np.testing.assert_array_equal(data.labels, [0, 1])


def test_columns_by_name(tmp_path):
    rows = [{"body": "a dog", "topic": "pets"}, {"body": "to cook", "topic": "food"}]
    file = write(tmp_path, ".csv", rows)
    data = tasks.read_table(file, Lengths(), tasks.Columns("body", label="topic"))
    assert data.label_names == ("food", "pets")
    np.testing.assert_array_equal(data.labels, [1, 0])
    assert data.display == ["a dog", "to cook"]
    unlabelled = tasks.read_table(file, Lengths(), tasks.Columns("body", label=None))
    assert unlabelled.labels is None
    assert len(unlabelled) == 2


def test_the_hubs_snli_in_parquet(tmp_path):
    """Its columns and label numbers, −1 where annotators did not agree, and a cell without a text."""
    rows = [
        {"premise": "a man", "hypothesis": "a cat", "label": -1},
        {"premise": "a man", "hypothesis": None, "label": 1},
        {"premise": "the dog", "hypothesis": "a dog", "label": 0},
    ]
    columns = tasks.Columns("premise", "hypothesis", "label", ("entailment", "neutral", "contradiction"), skip=("-1",))
    data = tasks.read_table(write(tmp_path, ".parquet", rows), Lengths(), columns)
    np.testing.assert_array_equal(data.labels, [1, 0])
    assert data.display == [("a man", ""), ("the dog", "a dog")]
    (tmp_path / "latin.csv").write_bytes("premise,hypothesis,label\ncafé,x,0\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv cannot be read as a table in UTF-8"):
        tasks.read_table(tmp_path / "latin.csv", Lengths(), columns)
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ValueError, match=r"damaged\.parquet is not a Parquet file, or is damaged"):
        tasks.read_table(tmp_path / "damaged.parquet", Lengths(), columns)


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("a.csv", "", tasks.Columns("text"), "is empty"),
        ("a.csv", "text,label\n", tasks.Columns("text"), "has no examples"),
        ("a.csv", "body,label\nx,1\n", tasks.Columns("text"), "no column 'text'; its columns are body, label"),
        ("a.csv", "text,label\nx,7\n", tasks.Columns("text", label_names=("n", "y")), "label 7; expected 0 to 1"),
        ("a.csv", "text,label\nx,-2\n", tasks.Columns("text"), "label -2; labels must not be negative"),
        (
            "a.csv",
            "text,label\nx,maybe\n",
            tasks.Columns("text", label_names=("n", "y")),
            "'maybe'; expected one of n, y",
        ),
        ("a.tsv", "text\tlabel\nx\n", tasks.Columns("text"), "line 2: 1 cells, the header has 2"),
        ("a.jsonl", '{"text": "x", "label": 0}\n{"text"\n', tasks.Columns("text"), "line 2 is not JSON"),
        ("a.json", '[{"text": "x", "label": 0}]', tasks.Columns("text"), "line 1 is a JSON list; expected one object"),
        ("a.xml", "<x/>", tasks.Columns("text"), r"ends in '\.xml'; expected \.csv"),
    ],
)
def test_bad_tables_are_told_apart(tmp_path, name, content, columns, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        tasks.read_table(tmp_path / name, Lengths(), columns)


def test_image_folders(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for label, (name, level) in enumerate([("cat", 50), ("dog", 200)]):
        (tmp_path / name).mkdir()
        for i in range(2):
            image.fromarray(np.full((4, 6, 3), level + i, np.uint8)).save(tmp_path / name / f"{i}.png")
        (tmp_path / name / "notes.txt").write_text(str(label))
    data = tasks.read_image_folder(tmp_path, Thumbs())
    np.testing.assert_array_equal(data.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(data.examples[:]["pixel_values"][:, 0, 0, 0], [50, 51, 200, 201])
    assert data.display.shape == (4, 96, 96, 3)
    assert data.display[2, 48, 48, 0] == 200
    part = data.subset([3, 0]).subset(slice(1))
    np.testing.assert_array_equal(part.examples[0:1]["pixel_values"][:, 0, 0, 0], [201])
    np.testing.assert_array_equal(part.labels, [1])
    np.testing.assert_array_equal(part.display, data.display[3:])
    drawn = tasks.read_image_folder(tmp_path, Thumbs(), limit=2, seed=1, label_names=("dog", "cat"))
    assert len(drawn) == 2
    (tmp_path / "cat" / "0.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"0\.png cannot be read as an image"):
        tasks.read_image_folder(tmp_path, Thumbs())
    with pytest.raises(FileNotFoundError, match="no folder 'bird', the class 1"):
        tasks.read_image_folder(tmp_path, Thumbs(), label_names=("cat", "bird"))
    (tmp_path / "empty" / "x").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no images"):
        tasks.read_image_folder(tmp_path / "empty", Thumbs())


def test_labels_numbered_differently_are_found_and_offered():
    """A model that means (contradiction, entailment, neutral), and is wrong on a tenth of the examples."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300).astype(np.int32)
    meant = np.array([1, 2, 0])[labels]
    shown = np.where(rng.random(300) < 0.1, (meant + 1) % 3, meant)
    names = ("contradiction", "entailment", "neutral")
    model = npeff.Model(lambda p, x: p["w"][x["k"]], {"w": 3 * jnp.eye(3)}, label_names=names)
    data = tasks.Dataset({"k": shown}, labels, [str(i) for i in range(300)], ("entailment", "neutral", "contradiction"))
    check = tasks.check_labels(model, data, limit=200, batch_size=64)
    assert check.best_map == {0: 1, 1: 2, 2: 0}
    assert not check.agrees
    assert check.accuracy < 0.15 < 0.85 < check.best_accuracy
    assert "entailment → entailment" in str(check)
    np.testing.assert_array_equal(data.labels, labels)  # nothing was changed
    fixed = data.relabel(check.best_map, check.model_names)
    again = tasks.check_labels(model, fixed)
    assert again.agrees
    assert again.accuracy > 0.85
    assert "numbered differently" not in str(again)
    with pytest.raises(ValueError, match=r"no entry for the labels \[2\]"):
        data.relabel({0: 0, 1: 1})


def test_subset_keeps_examples_labels_and_display_together():
    data = tasks.Dataset({"k": np.arange(5)}, np.arange(5), list("abcde"))
    for rows in (slice(1, 4), np.array([1, 2, 3]), np.arange(5) % 4 != 0):
        part = data.subset(rows)
        assert part.display == ["b", "c", "d"]
        np.testing.assert_array_equal(part.labels, part.examples["k"])


def test_the_papers_settings():
    presets = tasks.presets
    assert (presets.NLI.n_examples, presets.NLI.n_heldout, presets.NLI.n_components) == (50_000, 50_000, 512)
    assert (presets.QQP.n_examples, presets.QQP.n_heldout, presets.QQP.n_components) == (50_000, 40_430, 256)
    imagenet = presets.IMAGENET
    assert (imagenet.n_examples, imagenet.n_heldout, imagenet.n_components) == (20_000, 30_000, 512)
    assert imagenet.representation.min_probability == 3e-3


def save_dataset(folder, rows, features=None, parts=2):
    """A data set as Hugging Face's ``datasets`` lays it out on disk: Arrow streams, a state and a description."""
    pa = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    table, names = pa.Table.from_pylist(rows), []
    for k in range(parts):
        part = table.slice(k * len(rows) // parts, (k + 1) * len(rows) // parts - k * len(rows) // parts)
        names.append(f"data-{k:05d}-of-{parts:05d}.arrow")
        with pa.OSFile(str(folder / names[-1]), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names], "_indices_data_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features or {}}))
    return folder


CLASSES = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "text": {"dtype": "string", "_type": "Value"}}


def test_a_saved_hugging_face_data_set(tmp_path):
    rows = [{"text": f"word {'more ' * (i % 3)}", "label": i % 2, "idx": i} for i in range(7)]
    folder = save_dataset(tmp_path / "saved" / "test", rows, CLASSES)
    assert tasks.column_names(folder) == ["text", "label", "idx"]
    data = tasks.read_table(folder, Lengths(), tasks.Columns("text"))
    assert data.display == [row["text"] for row in rows]
    assert data.label_names == ("neg", "pos")
    np.testing.assert_array_equal(data.labels, [row["label"] for row in rows])
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(ValueError, match=r"has the splits train, test; name the folder of one of them"):
        tasks.read_table(tmp_path / "saved", Lengths(), tasks.Columns("text"))
    unlabelled = save_dataset(tmp_path / "unlabelled", [{**row, "label": -1} for row in rows], CLASSES)
    with pytest.raises(ValueError, match="row 1"):
        tasks.read_table(unlabelled, Lengths(), tasks.Columns("text"))
    with pytest.raises(ValueError, match="has no column 'body'"):
        tasks.read_table(folder, Lengths(), tasks.Columns("body"))
    (folder / "data-00001-of-00002.arrow").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is no Arrow stream, or is damaged"):
        tasks.read_table(folder, Lengths(), tasks.Columns("text"))
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match=r"lacks data-00001-of-00002\.arrow"):
        tasks.read_table(folder, Lengths(), tasks.Columns("text"))


def test_semicolons_byte_order_marks_and_compression_together(tmp_path):
    text = '\ufefftext;label\r\nein Satz;1\r\n"mit; Zeichen";0\r\n'
    (tmp_path / "data.csv.gz").write_bytes(gzip.compress(text.encode()))
    data = tasks.read_table(tmp_path / "data.csv.gz", Lengths(), tasks.Columns("text"))
    assert data.display == ["ein Satz", "mit; Zeichen"]
    (tmp_path / "old.csv").write_bytes("text,label\ncafé,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"encoding='cp1252' \(--encoding cp1252\) or 'latin-1'"):
        tasks.read_table(tmp_path / "old.csv", Lengths(), tasks.Columns("text"))
    assert tasks.read_table(tmp_path / "old.csv", Lengths(), tasks.Columns("text"), encoding="latin-1").display == [
        "café"
    ]
