"""Is a run of `compute_pefs` safe against being killed at any moment?

Kills a writing process at every write, fsync and rename boundary, and by SIGKILL at random moments; each time another
process resumes, and what it leaves must equal, byte for byte and file for file, what an uninterrupted run leaves.

    python benchmarks/kill_store.py [--random 100] [--out kill_store.json]
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

N, BATCH, KEEP = 24, 4, 30


def write_pefs(path: pathlib.Path, boundary: int | None, pause: float) -> None:
    """The run that is killed: by itself at its ``boundary``-th boundary, if one is given.

    A boundary is the moment before and after an array's write, the manifest's fsync and its rename. ``pause`` seconds
    pass at each, so that a kill at a random moment finds the writer between any two.
    """
    import numpy as np

    import npeff_jax as npeff
    from npeff_jax.pefs import store

    passed = 0

    def at_boundary() -> None:
        nonlocal passed
        passed += 1
        if passed == boundary:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(pause)

    def around(function):
        def wrapped(*args, **kwargs):
            at_boundary()
            result = function(*args, **kwargs)
            at_boundary()
            return result

        return wrapped

    store.StoredArray.write = around(store.StoredArray.write)
    pathlib.Path.replace, os.fsync = around(pathlib.Path.replace), around(os.fsync)
    rng = np.random.default_rng(0)
    model = npeff.Model(lambda p, x: x @ p, rng.normal(size=(12, 5)).astype(np.float32))
    x = rng.normal(size=(N, 12)).astype(np.float32)
    npeff.compute_pefs(model, x, labels=np.arange(N), keep=KEEP, path=path, batch_size=BATCH, progress=False)
    print(json.dumps({"boundaries": passed}))


def run(path: pathlib.Path, boundary: int | None = None, pause: float = 0.0) -> subprocess.Popen:
    command = [sys.executable, __file__, "--write", str(path), "--pause", str(pause)]
    command += [] if boundary is None else ["--boundary", str(boundary)]
    root = str(pathlib.Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def contents(path: pathlib.Path) -> dict[str, str]:
    """Every file and its digest."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def committed(path: pathlib.Path) -> int:
    try:
        return json.loads((path / "manifest.json").read_text())["committed"]
    except FileNotFoundError:
        return -1


def finish(path: pathlib.Path) -> None:
    process = run(path)
    _, error = process.communicate()
    assert process.returncode == 0, error


def kill_at_boundaries(folder: pathlib.Path, whole: dict[str, str], boundaries: list[int]) -> int:
    for boundary in boundaries:
        path = folder / f"boundary{boundary}"
        process = run(path, boundary)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"boundary {boundary} was not reached"
        finish(path)
        assert contents(path) == whole, f"killed at boundary {boundary}, the resumed run differs"
    return len(boundaries)


def kill_at_random(folder: pathlib.Path, whole: dict[str, str], count: int, seed: int = 0) -> dict[str, int]:
    """SIGKILLs at random moments, most of them after a commit and while the writer works."""
    rng, during = random.Random(seed), 0
    for i in range(count):
        path = folder / f"random{i}"
        process = run(path, pause=0.01)
        while committed(path) < (BATCH if i % 4 else -1) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.8))
        process.kill()
        process.communicate()
        during += BATCH <= committed(path) < N
        finish(path)
        assert contents(path) == whole, f"kill {i}: the resumed run differs"
    return {"kills": count, "after_a_commit_and_before_the_end": during}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=100)
    parser.add_argument("--every", type=int, default=1, help="kill at every so-manieth boundary")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--write", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--boundary", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--pause", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write is not None:
        write_pefs(options.write, options.boundary, options.pause)
        return
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        process = run(folder / "whole")
        output, error = process.communicate()
        assert process.returncode == 0, error
        whole, boundaries = contents(folder / "whole"), json.loads(output)["boundaries"]
        result = {"boundaries": boundaries, "files": len(whole)}
        result["killed_at"] = kill_at_boundaries(folder, whole, list(range(1, boundaries + 1, options.every)))
        result |= kill_at_random(folder, whole, options.random)
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
