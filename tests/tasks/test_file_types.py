"""Files as examples: which are found, how they are labelled, read, compared and shown.

Needs no package: the facts about extensions and the network are made here.
"""

import itertools
import os

import numpy as np
import pytest
from file_types_without_package import NAMES, content, stand_in

import npeff_jax as npeff
from npeff_jax.tasks._file_windows import FileWindows, printable, read_window, sketch


@pytest.fixture
def without_package(tmp_path_factory, monkeypatch):
    stand_in(monkeypatch, tmp_path_factory.mktemp("package"))


@pytest.fixture
def folder(tmp_path, without_package):
    """Nine usable files of three types, and one of each kind that is left out."""
    for i, name in enumerate(("a.py", "deep/er/b.py", "c.py", "d.PY", "e.js", "f.js", "g.js", "h.html", "i.htm")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(i, 300 + 700 * i))
    (tmp_path / "copy.py").write_bytes(content(0) + b"\n# the last line is another\n")
    (tmp_path / "unknown.odd").write_bytes(content(20))
    (tmp_path / "several.m").write_bytes(content(21))
    (tmp_path / "header.h").write_bytes(content(22))
    (tmp_path / "short.txt").write_bytes(b" " * 400 + b"little")
    (tmp_path / "link.py").symlink_to(tmp_path / "a.py")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden.py").write_bytes(content(23))
    return tmp_path


def test_files_are_found_labelled_and_counted(folder):
    task = npeff.tasks.file_types(folder)
    kinds = dict(zip(task.paths, (NAMES[label] for label in task.labels)))
    one_of_two = {"a.py", "copy.py"} & set(kinds)  # nearly the same, whichever comes first
    assert len(one_of_two) == 1
    expected = {"deep/er/b.py": "python", "c.py": "python", "d.PY": "python", "h.html": "html", "i.htm": "html"}
    expected |= dict.fromkeys(("e.js", "f.js", "g.js"), "javascript") | dict.fromkeys(one_of_two, "python")
    assert kinds == expected
    assert {reason: count for reason, count in task.left_out.items() if count} == {
        "with a name that stands for several types": 2,
        "with a name that stands for no type": 1,
        "nearly the same as another": 1,
        "of fewer than 64 bytes": 1,
        "links or devices": 3,
    }
    assert f"{len(task.decomposed)} to decompose, {len(task.heldout)} held out, of 3 types" in str(task)


def test_examples_labels_paths_and_display_are_in_one_order(folder):
    task = npeff.tasks.file_types(folder)
    windows = np.concatenate([task.decomposed.examples[:], task.heldout.examples[:]])
    display = [*task.decomposed.display, *task.heldout.display]
    for path, window, label, shown in zip(task.paths, windows, task.labels, display, strict=True):
        np.testing.assert_array_equal(window, read_window(folder / path))
        assert shown[0] == f"{path} ({NAMES[label]} by its name)"
        assert shown[1].split("\n")[0] == (folder / path).read_text().split("\n")[0]
        assert shown[2].split("\n")[-1] == (folder / path).read_text().strip().split("\n")[-1]


def test_the_list_does_not_depend_on_when_files_were_made(folder):
    task = npeff.tasks.file_types(folder)
    for path in ("a.py", "g.js"):
        data = (folder / path).read_bytes()
        (folder / path).unlink()
        (folder / path).write_bytes(data)
    again = npeff.tasks.file_types(folder)
    assert (again.paths, again.digest) == (task.paths, task.digest)
    assert npeff.tasks.file_types(str(folder) + os.sep).digest == task.digest


@pytest.mark.parametrize("change", ["content", "name"])
def test_another_file_is_another_digest(folder, change):
    digest = npeff.tasks.file_types(folder).digest
    if change == "content":
        (folder / "e.js").write_bytes(content(4, 300 + 700 * 4) + b"!")
    else:
        (folder / "e.js").rename(folder / "ee.js")
    assert npeff.tasks.file_types(folder).digest != digest


def test_fewer_files_are_of_as_many_types(folder):
    task = npeff.tasks.file_types(folder, n_files=6)
    assert np.unique(task.labels, return_counts=True)[1].tolist() == [2, 2, 2]
    # Three of five for Python, the near-duplicate among them or compared before, and one of three for JavaScript.
    assert task.left_out["more than needed"] + task.left_out.get("nearly the same as another", 0) == 4


def test_each_type_is_decomposed_and_the_share_is_held_out(tmp_path, without_package):
    seeds = itertools.count()
    for extension, count in (("py", 24), ("js", 12), ("html", 3), ("c", 1)):
        for i in range(count):
            (tmp_path / f"{i}.{extension}").write_bytes(content(next(seeds)))
    task = npeff.tasks.file_types(tmp_path, heldout_share=0.25)
    assert len(task.heldout) == 10
    assert set(task.decomposed.labels) == set(task.labels)
    assert not set(task.paths[: len(task.decomposed)]) & set(task.paths[len(task.decomposed) :])


def test_bytes_beyond_the_windows_do_not_matter(tmp_path):
    file, data = tmp_path / "x", content(0, 20_000)
    file.write_bytes(data)
    window = read_window(file)
    assert bytes(window.astype(np.uint8)) == data[:1024] + data[-1024:]
    file.write_bytes(data[:5000] + b"?" * 9 + data[5009:-5000] + data[-5000:])
    np.testing.assert_array_equal(read_window(file), window)
    file.write_bytes(b" \n\t" * 200 + data + b"\r\n" * 300)
    np.testing.assert_array_equal(read_window(file), window)
    file.write_bytes(data[:1023] + b"?" + data[1024:])
    assert np.flatnonzero(read_window(file) != window).tolist() == [1023]


def test_a_short_file_is_padded_between_its_ends(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"\n\nfirst last \n")
    window = read_window(file)
    # White space at the other end stays: only the side that a window begins from is stripped.
    assert bytes(window[:13].astype(np.uint8)) == b"first last \n\x00"[:12] + bytes([0])
    assert bytes(window[-12:].astype(np.uint8)) == b"\n\nfirst last"
    assert (window[12:-12] == 256).all()


def test_white_space_alone_is_padding(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b" " * 9000)
    assert (read_window(file) == 256).all()


def test_files_are_read_when_they_are_sliced(tmp_path):
    files = [tmp_path / str(i) for i in range(4)]
    for i, file in enumerate(files):
        file.write_bytes(content(i))
    source = FileWindows(files)
    np.testing.assert_array_equal(source[np.array([2, 0])], np.stack([read_window(files[2]), read_window(files[0])]))
    files[1].unlink()
    assert source[2:].shape == (2, 2048)
    with pytest.raises(OSError, match="1"):
        source[:2]


def test_sketches_estimate_how_much_two_windows_share():
    random = np.random.default_rng(0)

    def shared(fraction):
        """Estimates for windows of which a fraction of the bytes is the same, from the start of each part."""
        found = []
        for _ in range(20):
            first, other = random.integers(0, 256, (2, 2, 1024))
            same = int(fraction * 1024)
            other[:, :same] = first[:, :same]
            found.append(np.mean(sketch(first.reshape(-1)) == sketch(other.reshape(-1))))
        return np.mean(found)

    # A fraction f of the shingles in common is a Jaccard index of f / (2 − f); 20 × 64 draws have an error of 0.014.
    for fraction in (0.0, 0.5, 0.75, 1.0):
        assert shared(fraction) == pytest.approx(fraction / (2 - fraction), abs=0.06)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00", "·PNG\n·\n··"),
        ("naïve → ok".encode(), "naïve → ok"),
        ("a\u202ecod\u200b\x07".encode(), "a·cod··"),
        (b"\xff\xfe</script>", "··</script>"),
        (b"\ta", "    a"),
    ],
)
def test_bytes_become_printable(content, expected):
    assert printable(content) == expected


def test_a_name_cannot_break_a_line(tmp_path, without_package):
    for i in range(4):
        (tmp_path / f"line\nbreak\x1b[31m{i}.py").write_bytes(content(i))
    task = npeff.tasks.file_types(tmp_path)
    assert task.decomposed.display[0][0].startswith("line·break·[31m")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_files": 1}, "n_files=1"),
        ({"heldout_share": 1.0}, r"heldout_share=1\.0"),
        ({"heldout_share": 0.0}, "fraction"),
    ],
)
def test_arguments_out_of_range(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        npeff.tasks.file_types(folder, **arguments)


def test_folders_that_will_not_do(tmp_path, without_package):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        npeff.tasks.file_types(tmp_path / "absent")
    (tmp_path / "one.py").write_bytes(content(0))
    (tmp_path / "two.odd").write_bytes(content(1))
    with pytest.raises(
        ValueError, match=r"1 usable files \(left out: 1 with a name that stands for no type\), too few"
    ):
        npeff.tasks.file_types(tmp_path)
