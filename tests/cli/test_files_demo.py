"""``npeff demo files`` on a folder: from files to a report in which they are only text."""

import re

from file_types_without_package import NAMES, content, stand_in

import npeff_jax

HOSTILE = b"</script><script>document.title = 'run'</script><img src=x onerror=alert(1)>\x1b[2J" + bytes(range(256))


def test_from_a_folder_to_a_report(npeff, here, monkeypatch, tmp_path_factory):
    stand_in(monkeypatch, tmp_path_factory.mktemp("package"))
    folder = here / "folder"
    folder.mkdir()
    for i, extension in enumerate(("py", "js", "html") * 6):
        (folder / f"{i}.{extension}").write_bytes(HOSTILE + content(i, 2000))
    code, out, err = npeff("demo files folder --out made")
    assert code == 0, err
    assert "files: 12 to decompose, 6 held out, of 3 types" in out
    pefs, heldout = (npeff_jax.load_pefs(here / "made" / name) for name in ("decomposed", "heldout"))
    assert (len(pefs.labels), len(heldout.labels)) == (12, 6)
    lines = (here / "made" / "files.tsv").read_text().splitlines()
    assert re.fullmatch(r"# [0-9a-f]{32}", lines[0])
    assert lines[0][2:] in out
    assert sorted(lines[1:])[0].startswith("decomposed\t")
    labels = [NAMES.index(re.search(r"\((\w+) by its name\)", line)[1]) for line in lines[1:]]
    assert labels == [*pefs.labels, *heldout.labels]
    page = (here / "made" / "report.html").read_text()
    assert page.count("<script") == 2  # the page's own, and its data
    assert "<img" not in page
    assert "alert(1)" in page  # shown as text
    assert "\x1b" not in page

    (folder / "0.py").write_bytes(content(99))
    code, _, err = npeff("demo files folder --out made")
    assert code == 2
    assert "made/decomposed holds PEFs with another" in err


def test_a_folder_that_is_not_there(npeff, monkeypatch, tmp_path_factory):
    stand_in(monkeypatch, tmp_path_factory.mktemp("package"))
    code, _, err = npeff("demo files absent")
    assert code == 2
    assert "there is no folder absent" in err


def test_without_the_package(npeff, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = npeff("demo files")
    assert code == 2
    assert "pip install --no-deps magika" in err
