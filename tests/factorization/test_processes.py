"""Two processes through jax.distributed reach what one does."""

import json
import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.tasks import planted, planted_diagonal

WORKER = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
port, process, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
sys.path.insert(0, folder)
import npeff_jax as npeff
from npeff_jax.tasks import planted, planted_diagonal
assert len(jax.devices()) == 4 and len(jax.local_devices()) == 2
stopping = npeff.Stopping(max_steps=40, tolerance=-1.0)
losses = {}
for make, choices in [(planted, ("DenseRows", "SparseRows", "KernelRows")), (planted_diagonal, ("SparseRows",))]:
    for name in choices:
        found = npeff.decompose(
            make().pefs, 4, rows=getattr(npeff, name)(), mesh=npeff.make_mesh(), stopping=stopping, progress=False
        )
        losses[f"{make.__name__} {name}"] = found.history.loss.tolist()
        assert found.pseudo_fishers.shape[0] == 4
print(json.dumps(losses))
"""


def test_two_processes_agree_with_one(request):
    folder = str(request.path.parent)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", WORKER, port]
    processes = [
        subprocess.Popen(
            [*command, str(k), folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=request.config.rootpath,
        )
        for k in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode:
            pytest.fail(errors[-9000:])
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    assert first == second, "both processes hold the same result"
    stopping = npeff.Stopping(max_steps=40, tolerance=-1.0)
    for make in (planted, planted_diagonal):
        alone = npeff.decompose(make().pefs, 4, stopping=stopping, progress=False).history.loss
        for name in first:
            if name.startswith(make.__name__ + " "):
                np.testing.assert_allclose(first[name], alone, rtol=1e-4, atol=1e-6, err_msg=name)


NETWORK = """
import os
import numpy as np
import jax.numpy as jnp
import npeff_jax as npeff

rng = np.random.default_rng(0)
params = {"w": jnp.asarray(rng.normal(size=(6, 8)), "float32"), "v": jnp.asarray(rng.normal(size=(8, 3)), "float32")}
model = npeff.Model(lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], params)
examples = rng.normal(size=(60, 6)).astype(np.float32)

if "KILL_AFTER" in os.environ:  # as a node that goes away: no process says goodbye
    from npeff_jax.factorization import _driver

    class Killed(_driver.CheckpointStore):
        def save(self, saved):
            super().save(saved)
            if len(saved.losses) >= int(os.environ["KILL_AFTER"]):
                os._exit(9)

    _driver.CheckpointStore = Killed
    from npeff_jax.factorization import _decompose

    _decompose.CheckpointStore = Killed
"""


def run_under_slurm(folder, job, processes=2, **more):
    """The script of the page on clusters, in processes that see SLURM's variables; their exit codes and errors."""
    started = []
    for k in range(processes):
        slurm = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}
        slurm |= {"SLURM_NTASKS": str(processes), "SLURM_PROCID": str(k), "SLURM_LOCALID": str(k)}
        slurm |= {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
        started.append(
            subprocess.Popen(
                [sys.executable, "factorize.py", str(folder / "job"), "4"],
                env=os.environ | slurm | more, cwd=folder, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    ends = [process.communicate(timeout=240)[1] for process in started]
    return [process.returncode for process in started], ends


def test_the_script_for_a_cluster_killed_and_run_again(tmp_path, request):
    page = (request.config.rootpath / "docs/guides/cluster.md").read_text()
    script = re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1)
    (tmp_path / "factorize.py").write_text(script.replace("keep=8192", "keep=100"))
    (tmp_path / "network.py").write_text(NETWORK)
    job = os.getpid()
    codes, errors = run_under_slurm(tmp_path, job, KILL_AFTER="20")
    assert 9 in codes, errors
    assert not (tmp_path / "job/decomposition").exists()
    codes, errors = run_under_slurm(tmp_path, job + 1)
    assert codes == [0, 0], errors
    found = npeff.load_decomposition(tmp_path / "job/decomposition")
    alone = npeff.decompose(npeff.load_pefs(tmp_path / "job/pefs"), 4, progress=False)
    assert len(found.history.loss) == len(alone.history.loss)
    np.testing.assert_allclose(found.history.loss, alone.history.loss, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.pseudo_fishers[:], alone.pseudo_fishers, atol=1e-3)
