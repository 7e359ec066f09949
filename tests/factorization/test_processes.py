"""Two processes through jax.distributed reach what one does."""

import json
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
