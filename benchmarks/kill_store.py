"""Is a run of `compute_pefs` safe against being killed at any moment?

Kills a writing process at every write, fsync and rename boundary, and by SIGKILL at random moments; each time another
process resumes, and what it leaves must equal, byte for byte and file for file, what an uninterrupted run leaves.

    python benchmarks/kill_store.py [--random 100] [--out kill_store.json]
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import signal
import tempfile
import time
from multiprocessing.process import BaseProcess

import numpy as np

import npeff_jax as npeff
from npeff_jax import store
from npeff_jax.pefs import _files

N, BATCH, KEEP = 24, 4, 30

# Children are forked from a server that has imported JAX and never started it: a kill takes a second, not five.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["npeff_jax", "tensorstore"])


def write_pefs(path: pathlib.Path, boundary: int | None, pause: float) -> None:
    """The run that is killed: by itself at its ``boundary``-th boundary, if one is given.

    A boundary is the moment before and after an array's write, the manifest's fsync and its rename. ``pause`` seconds
    pass at each, so that a kill at a random moment finds the writer between any two. Beside ``path`` stand the number
    of boundaries passed and whether the writer is at work.
    """
    passed = 0

    def at_boundary() -> None:
        nonlocal passed
        passed += 1
        if passed == boundary:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(pause)

    def around(function, before, after):
        def wrapped(*args, **kwargs):
            before()
            result = function(*args, **kwargs)
            after()
            return result

        return wrapped

    store.StoredArray.write = around(store.StoredArray.write, at_boundary, at_boundary)
    pathlib.Path.replace = around(pathlib.Path.replace, at_boundary, at_boundary)
    os.fsync = around(os.fsync, at_boundary, at_boundary)
    busy = path.with_suffix(".busy")
    _files.PefFiles._write = around(_files.PefFiles._write, busy.touch, lambda: busy.unlink(missing_ok=True))
    rng = np.random.default_rng(0)
    model = npeff.Model(lambda p, x: x @ p, rng.normal(size=(12, 5)).astype(np.float32))
    x = rng.normal(size=(N, 12)).astype(np.float32)
    npeff.compute_pefs(model, x, labels=np.arange(N) % 5, keep=KEEP, path=path, batch_size=BATCH, progress=False)
    path.with_suffix(".boundaries").write_text(str(passed))


def start(path: pathlib.Path, boundary: int | None = None, pause: float = 0.0) -> BaseProcess:
    """A process that writes, or goes on writing, to ``path``."""
    path.with_suffix(".busy").unlink(missing_ok=True)
    process = PROCESSES.Process(target=write_pefs, args=(path, boundary, pause))
    process.start()
    return process


def finish(path: pathlib.Path) -> dict[str, str]:
    """Run to the end: what it leaves."""
    process = start(path)
    process.join()
    assert process.exitcode == 0, f"the run on {path.name} failed"
    return contents(path)


def contents(path: pathlib.Path) -> dict[str, str]:
    """Every file and its digest."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def boundaries(path: pathlib.Path) -> int:
    """How many a finished run passed."""
    return int(path.with_suffix(".boundaries").read_text())


def committed(path: pathlib.Path) -> int:
    try:
        return json.loads((path / "manifest.json").read_text())["committed"]
    except FileNotFoundError:
        return -1


def kill_at_boundaries(folder: pathlib.Path, whole: dict[str, str], chosen: list[int]) -> int:
    for boundary in chosen:
        path = folder / f"boundary{boundary}"
        process = start(path, boundary)
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"boundary {boundary} was not reached"
        assert finish(path) == whole, f"killed at boundary {boundary}, the resumed run differs"
    return len(chosen)


def kill_at_random(folder: pathlib.Path, whole: dict[str, str], count: int, seed: int = 0) -> dict[str, int]:
    """SIGKILLs at random moments, most of them after a commit and while the writer works."""
    rng, during = random.Random(seed), 0
    for i in range(count):
        path = folder / f"random{i}"
        process = start(path, pause=0.01)
        while committed(path) < (BATCH if i % 4 else -1) and process.is_alive():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.8))
        process.kill()
        process.join()
        during += committed(path) >= BATCH and path.with_suffix(".busy").exists()
        assert finish(path) == whole, f"kill {i}: the resumed run differs"
    return {"kills": count, "after_a_commit_and_during_a_write": during}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=100)
    parser.add_argument("--every", type=int, default=1, help="kill at every so-manieth boundary")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}  # compiled once for all processes
        os.environ.update(cache | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"})
        whole = finish(folder / "whole")
        count = boundaries(folder / "whole")
        result = {"boundaries": count, "files": len(whole)}
        result["killed_at"] = kill_at_boundaries(folder, whole, list(range(1, count + 1, options.every)))
        result |= kill_at_random(folder, whole, options.random)
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
