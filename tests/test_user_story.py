"""The contract, `user_story.py`, run unchanged as a user would run it: on one CPU device, and on eight forced ones."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

STORY = pathlib.Path(__file__).with_name("user_story.py")

TELL = """
import json, runpy, sys, jax
story = runpy.run_path(sys.argv[1])
print(json.dumps({
    "devices": jax.device_count(),
    "loss": story["decomposition"].history.loss.tolist(),
    "diagonal_loss": story["diagonal"].history.loss.tolist(),
    "expanded_loss": story["expanded"].history.loss.tolist(),
    "kl_ratio": story["table"].kl_ratio.tolist(),
    "null_kl_ratio": story["table"].null_kl_ratio.tolist(),
}))
"""


def tell(n_devices: int) -> dict:
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(n_devices), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", TELL, str(STORY)]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=STORY.parent.parent)
    assert told.returncode == 0, told.stderr[-3000:]
    return json.loads(told.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def stories() -> tuple[dict, dict]:
    return tell(1), tell(8)


def test_the_story_runs_on_one_device_and_on_eight(stories):
    assert [story["devices"] for story in stories] == [1, 8]


@pytest.mark.parametrize("which", ["loss", "diagonal_loss", "expanded_loss"])
def test_losses_do_not_depend_on_the_number_of_devices(stories, which):
    one, eight = (np.array(story[which]) for story in stories)
    assert len(one) == len(eight)
    np.testing.assert_allclose(eight, one, rtol=1e-4)


def test_components_are_more_selective_than_other_components(stories):
    """What the decomposition is for: a component's own direction moves its examples more than the others' do."""
    for story in stories:
        assert np.median(story["kl_ratio"]) > np.median(story["null_kl_ratio"])
