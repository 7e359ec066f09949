"""A decomposition that travels: its folder, its card, the hub and back."""

import json
import shutil

import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.report import from_pretrained, push_to_hub, report_data, save_pretrained

pytest.importorskip("jinja2")


@pytest.fixture
def data(results, hostile):
    return report_data(results.decomposition, results.heldout, results.fit, results.selectivity, title=hostile[0])


def test_what_was_saved_comes_back(results, data, tmp_path):
    folder = save_pretrained(
        tmp_path / "npeff",
        results.decomposition,
        data,
        model_name="someone/model",
        examples_name="digits",
        license="mit",
    )
    assert {path.name for path in folder.iterdir()} == {
        *("components", "report.html", "report.json", "config.json", "README.md")
    }
    elsewhere = shutil.move(folder, tmp_path / "moved")
    found = from_pretrained(elsewhere)
    np.testing.assert_array_equal(found.decomposition.coefficients, results.decomposition.coefficients)
    np.testing.assert_array_equal(found.decomposition.pseudo_fishers[:], results.decomposition.pseudo_fishers)
    assert found.report.to_json() == json.loads(json.dumps(data.to_json()))
    assert found.config["model"] == "someone/model"
    assert found.config["settings"] == {"seed": 0}
    assert found.config["pefs"]["keep"] == 64
    page = (found.path / "report.html").read_text()
    assert "</html>" in page


def test_the_card_says_what_it_is(results, data, tmp_path):
    save_pretrained(tmp_path / "a", results.decomposition, data, model_name="user/name")
    card = (tmp_path / "a" / "README.md").read_text()
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(head) == {
        "library_name": "npeff_jax",
        "tags": ["interpretability", "npeff", "fisher-information"],
        "base_model": "user/name",
    }
    loss = results.decomposition.loss
    assert f"| share of the PEFs' squared norm explained | {1 - loss:.1%} |" in body
    ratios = [c.causal.kl_ratio for c in data.components]
    assert f"| median KL ratio of the components' moves | {np.median(ratios):.2f} |" in body
    assert "6 (LRM-NPEFF)" in body
    code = body.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(tmp_path / "a"))
    exec(code, {})  # how to load it, as it is written there
    plain = (save_pretrained(tmp_path / "b", results.decomposition, model_name="my own net") / "README.md").read_text()
    assert "base_model" not in plain
    assert "predictions of my own net react" in plain


def test_what_is_there_and_what_does_not_belong_is_refused(results, data, make, tmp_path):
    folder = save_pretrained(tmp_path / "a", results.decomposition, data)
    with pytest.raises(FileExistsError, match="exists already"):
        save_pretrained(folder, results.decomposition, data)
    with pytest.raises(ValueError, match="the report is of 6 components"):
        save_pretrained(tmp_path / "b", make(r=3).decomposition, data)
    assert not (tmp_path / "b").exists()
    with pytest.raises(ValueError, match="holds no decomposition"):
        from_pretrained(folder / "components")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"version": 7}))
    with pytest.raises(ValueError, match="version 7"):
        from_pretrained(folder)


def test_to_the_hub_and_back(results, data, tmp_path, monkeypatch):
    """The hub's client is replaced by a folder; all that is ours runs."""
    hub = pytest.importorskip("huggingface_hub")
    made_there = {}

    class Api:
        def create_repo(self, name, *, private, exist_ok):
            made_there[name] = private

        def upload_folder(self, *, repo_id, folder_path, revision):
            assert repo_id in made_there
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id)

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, revision: str(tmp_path / "hub" / name))
    folder = save_pretrained(tmp_path / "a", results.decomposition, data)
    assert push_to_hub(folder, "user/components") == "https://huggingface.co/user/components"
    assert made_there == {"user/components": True}  # nobody else sees it unless told
    found = from_pretrained("user/components")
    assert found.report.to_json() == json.loads(json.dumps(data.to_json()))
    assert isinstance(found.decomposition, npeff.Decomposition)
    with pytest.raises(OSError, match="the Hugging Face hub did not take user/components"):
        push_to_hub(folder, "user/components")  # the copy is there already: an error of the client is a sentence


def test_offline_a_name_is_a_sentence(monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="is not a folder, and the Hugging Face hub did not give one"):
        from_pretrained("nobody/nothing-of-that-name")
