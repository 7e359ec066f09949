"""Two processes through jax.distributed write the bytes that one does."""

import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from fisher_problems import inputs, mlp

import npeff_jax as npeff
from npeff_jax.pefs import _processes
from npeff_jax.pefs._files import PefFiles

WORKER = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
port, process, folder, path = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
sys.path.insert(0, folder)
import npeff_jax as npeff
from fisher_problems import inputs, mlp
options = {"keep": 30, "batch_size": 4, "path": path, "progress": False}
assert jax.process_count() == 2 and len(jax.devices()) == 2
try:
    npeff.compute_pefs(mlp(), inputs(18), mesh=npeff.make_mesh(), **options)
except ValueError as error:
    assert "devices of other processes" in str(error)
pefs = npeff.compute_pefs(mlp(), inputs(18), **options)
assert len(pefs) == 18 and (pefs.norms > 0).all()
"""


def contents(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def run_two(path, root):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    folder = str(pathlib.Path(__file__).parent)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, port, str(k), folder, str(path)], stderr=subprocess.PIPE, text=True, cwd=root
        )
        for k in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        if process.returncode:
            pytest.fail(errors[-9000:])


def test_two_processes_write_the_bytes_of_one_and_go_on_with_what_one_began(tmp_path, request, monkeypatch):
    options = {"keep": 30, "batch_size": 4, "progress": False}
    alone = npeff.compute_pefs(mlp(), inputs(18), path=tmp_path / "one", **options)
    written = []
    original = PefFiles.write

    def stop_after_one(self, *arguments):
        written.append(arguments)
        if len(written) > 1:
            raise KeyboardInterrupt
        original(self, *arguments)

    monkeypatch.setattr(PefFiles, "write", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        npeff.compute_pefs(mlp(), inputs(18), path=tmp_path / "two", **options)
    monkeypatch.undo()
    run_two(tmp_path / "two", request.config.rootpath)  # 14 left: two rounds, the second without work for the other
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    np.testing.assert_array_equal(npeff.load_pefs(tmp_path / "two").values[:], alone.values[:])


def test_one_process_waits_for_nobody():
    assert (_processes.count(), _processes.index()) == (1, 0)
    _processes.wait_for_all("nothing")
