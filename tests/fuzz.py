"""Random input at the boundary of PEFs: every outcome is the right number, or an error raised in this package.

    python tests/fuzz.py --minutes 10 [--seed 1]

Prints its seed, and how many inputs of each kind gave a right number or a named error. What is neither ends it, with
the smallest input that shows it. The suite runs a short slice (``--inputs``).
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import random
import shutil
import tempfile
import time
import traceback
from collections import UserDict

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

import npeff_jax as npeff
from npeff_jax._examples import choose_examples, count_examples, examples_digest, slice_examples

PACKAGE = pathlib.Path(npeff.__file__).parent
COUNTS: collections.Counter = collections.Counter()
QUIET = {"progress": False}
W = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
MODEL = npeff.Model(lambda p, x: jnp.tanh(x @ p["w"].astype(x.dtype)), {"w": jnp.asarray(W)})


def outcome(kind, call):
    """The value of a call, or None where the package refused it by an error of its own."""
    try:
        value = call()
    except (ValueError, TypeError, OSError, RuntimeError, IndexError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if PACKAGE not in pathlib.Path(last.filename).parents or not str(error).strip():
            raise AssertionError(f"raw {type(error).__name__} from {last}: {error}") from error
        COUNTS[f"{kind}: named error"] += 1
        return None
    COUNTS[f"{kind}: right number"] += 1
    return value


def fisher(x):
    """F of one example in float64 NumPy."""
    z = np.tanh(x.astype(np.float64) @ W.astype(np.float64))
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    J = np.einsum("f,c,cd->dfc", x.astype(np.float64), 1 - z**2, np.eye(4)).reshape(4, -1)
    return J.T @ (np.diag(p) - np.outer(p, p)) @ J


numbers = st.one_of(
    st.integers(-3, 40), st.floats(allow_nan=True), st.booleans(), st.none(), st.text(max_size=3), st.just("principal")
)
scalars = st.one_of(numbers, st.integers(1, 14).map(np.int64), st.integers(0, 3).map(np.uint8), st.just(np.float32(2)))


@st.composite
def representations(draw):
    """Any class, with any values for its fields."""
    kind = draw(st.sampled_from([npeff.LowRank, npeff.Diagonal, npeff.Sampled]))
    names = [field.name for field in dataclasses.fields(kind)]
    chosen = draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
    usual = {
        "rows": st.sampled_from(["classes", "factor", "PRINCIPAL", npeff.RowBasis.CLASSES]),
        "min_probability": st.sampled_from([0.0, 0.1, 0.3]),
        "max_rows": st.integers(1, 4),
        "min_trace": st.sampled_from([0.5, 0.99]),
        "sketch": st.integers(1, 4),
        "n_samples": st.integers(1, 4),
        "seed": st.integers(0, 5),
    }
    return kind, {name: draw(st.one_of(usual[name], usual[name], scalars)) for name in chosen}


@st.composite
def containers(draw):
    """Examples and what they come as; the plain array they stand for, or None where they stand for nothing."""
    dtype = draw(
        st.sampled_from(["float32", "float64", ">f4", "float16", "int32", "int64", "bool", "uint8", "O", "U4"])
    )
    n = draw(st.integers(0, 6))
    x = np.asarray(draw(st.lists(st.integers(0, 3), min_size=3 * n, max_size=3 * n)), "i4").reshape(n, 3).astype(dtype)
    shapes = {
        "array": lambda: x,
        "jax": lambda: jnp.asarray(x),
        "mapping": lambda: UserDict(x=x),
        "lists": lambda: x.tolist(),
        "dictionary of lists": lambda: {"x": x.tolist()},
        "masked": lambda: np.ma.masked_array(x),
        "generator": lambda: iter(x),
        "ints": lambda: OneAtATime(x),
        "ragged": lambda: {"x": [row.tolist() for row in x] + [[1]]},
        "nested": lambda: ({"a": x}, [x, x]),
    }
    name = draw(st.sampled_from(sorted(shapes)))
    if (name == "jax" and dtype in ("O", "U4", ">f4")) or (name == "ragged" and n == 0):
        name = "array"
    refused = name in ("masked", "generator", "ragged") or n == 0 or dtype == "U4"
    return shapes[name], None if refused else x


class OneAtATime:
    """A map-style data set."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] if isinstance(i, int) else [][i.nothing]


@hypothesis.given(containers(), st.data())
def examples(container, data):
    """Counting, slicing, choosing and digesting whatever holds examples."""
    make, x = container

    def look():
        given = make()
        n = count_examples(given)
        rows = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5).map(np.array))
        return n, rows, slice_examples(given, rows), choose_examples(given, rows), examples_digest(given)

    found = outcome("examples", look)
    assert found is None or x is not None, "accepted without a word"
    if found is not None:
        n, rows, sliced, chosen, digest = found
        assert n == len(x)
        for leaf in jax.tree.leaves(sliced):
            np.testing.assert_array_equal(leaf.astype(float), x[rows].astype(float))
        again = slice_examples(chosen, slice(0, len(rows)))
        jax.tree.map(np.testing.assert_array_equal, again, sliced)
        assert examples_digest(make()) == digest


@hypothesis.given(
    representations(), scalars, scalars, st.integers(1, 6), st.sampled_from(["before", "none", "NONE", 3])
)
def settings(representation, keep, batch_size, n, normalization):
    """Settings of every type: the Fishers are those of a float64 oracle, or the setting is refused."""
    kind, fields = representation
    x = np.random.default_rng(n).normal(size=(6, 3)).astype(np.float32)

    def run():
        choice = kind(**fields) if fields else kind
        return npeff.compute_pefs(
            MODEL, x, choice, keep=keep, batch_size=batch_size, normalization=normalization, **QUIET
        )

    pefs = outcome("settings", run)
    if pefs is None:
        return
    assert not any(isinstance(value, bool | str | float) for value in (keep, batch_size))
    exact = kind is npeff.LowRank and not fields.get("min_probability") and not fields.get("sketch")
    truncated = fields.get("max_rows") or fields.get("min_trace")
    if exact and keep is None and not truncated:
        unit = normalization == "before"
        for i, row in enumerate(pefs.to_scipy().toarray().reshape(6, -1, 12)):
            F = fisher(x[i])
            scale = np.linalg.norm(F) if unit else 1.0
            np.testing.assert_allclose(row.T @ row, F / scale, atol=3e-5)
    assert np.isfinite(pefs.norms).all()
    assert (pefs.n_rows >= 1).all()


class Stored:
    """PEFs and a decomposition on disk, and what they held."""

    def __init__(self):
        self.root = pathlib.Path(tempfile.mkdtemp())
        x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
        pefs = npeff.compute_pefs(
            MODEL, x, path=self.root / "pefs", labels=np.arange(6) % 4, batch_size=2, keep=9, **QUIET
        )
        npeff.decompose(pefs, 2, **QUIET).save(self.root / "found")
        self.whole = self.read(self.root)

    def read(self, root):
        """Every number that there is."""
        pefs = npeff.load_pefs(root / "pefs")
        found = npeff.load_decomposition(root / "found")
        fields = [getattr(pefs, name) for name in pefs.__dataclass_fields__ if name != "schema"]
        arrays = [np.zeros(0) if field is None else np.asarray(field[:]) for field in fields]
        arrays += [np.asarray(found.coefficients[:]), np.asarray(found.pseudo_fishers[:]), found.parameter_indices]
        arrays += [found.history.loss, found.history.step]
        return arrays, (pefs.schema, found.schema, found.settings, found.stopped)

    def files(self):
        """All of them, relative."""
        return sorted(f.relative_to(self.root) for f in self.root.rglob("*") if f.is_file())


STORED: list[Stored] = []


def damaged(change):
    """Read a copy of what is stored after ``change``: nothing else than before, or an error that names a file."""
    stored = STORED[0] if STORED else STORED.append(Stored()) or STORED[0]
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder) / "copy"
        shutil.copytree(stored.root, root)
        name = change(stored, root)
        try:
            found = outcome("damage", lambda: stored.read(root))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    if found is not None:
        for a, b in zip(found[0], stored.whole[0], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{name}: other numbers without a word")
        assert found[1] == stored.whole[1], f"{name}: other metadata without a word"
    return found, name


@hypothesis.given(
    st.integers(0, 10**6), st.sampled_from(["flip", "truncate", "empty", "delete", "replace"]), st.integers(0, 7)
)
def damage(place, how, bit):
    """One file of the store, hit anywhere."""

    def change(stored, root):
        file = root / (name := stored.files()[place % len(stored.files())])
        data = bytearray(file.read_bytes())
        at = random.Random(place).randrange(max(len(data), 1))
        if how == "delete":
            file.unlink()
        else:
            data = {"empty": bytearray(), "truncate": data[:at], "replace": data[:at] + b"\xff" + data[at + 1 :]}.get(
                how, data
            )
            if how == "flip" and data:
                data[at] ^= 1 << bit
            file.write_bytes(data)
        return f"{how} {name} at {at}"

    found, name = damaged(change)
    assert found is None or how in ("replace", "truncate"), f"{name}: not noticed"


HOSTILE = st.sampled_from([None, True, -1, 2**70, 0.5, "", "x", [], {}, [[]], {"name": 3}, "../../etc", 99])


@hypothesis.given(st.integers(0, 10**6), HOSTILE, st.booleans())
def metadata(place, value, older):
    """A manifest that says something else, with a checksum that agrees or of a version that had none."""

    def change(stored, root):
        from npeff_jax.store import write_manifest

        folder = root / ("pefs" if place % 2 else "found")
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest.pop("checksum")
        at = manifest["schema"] if place % 3 else manifest
        key = sorted(at)[place % len(at)]
        at[key] = value
        if older:
            manifest.pop("generation", None)
            (folder / "manifest.json").write_text(json.dumps(manifest))
        else:
            write_manifest(folder, manifest)
        return f"{key} = {value!r}"

    stored = STORED[0] if STORED else STORED.append(Stored()) or STORED[0]
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder) / "copy"
        shutil.copytree(stored.root, root)
        said = change(stored, root)
        try:
            found = outcome("metadata", lambda: stored.read(root))
        except AssertionError as error:
            raise AssertionError(f"{said}: {error}") from error
    if found is not None:  # what it says was believed: it may be other words, but no other numbers
        for a, b in zip(found[0], stored.whole[0], strict=True):
            if a.size:  # it may say that there are no labels
                np.testing.assert_array_equal(a, b, err_msg=said)


KINDS = (examples, settings, damage, metadata)


def main() -> None:
    """Fuzz until the time is up, or for a number of inputs of each kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--inputs", type=int, default=0, help="of each kind, instead of minutes")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kinds", nargs="*", default=[kind.__name__ for kind in KINDS])
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    jax.config.update("jax_platforms", "cpu")
    end, turn = time.monotonic() + 60 * options.minutes, 0
    undecorated = {kind: dict(vars(kind)) for kind in KINDS}  # settings may be given to a test only once
    while turn == 0 or (not options.inputs and time.monotonic() < end):
        for kind in KINDS:
            if kind.__name__ in options.kinds:
                size = options.inputs or (20 if kind is settings else 100)
                run = hypothesis.settings(
                    max_examples=size, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
                )
                vars(kind).clear()
                vars(kind).update(undecorated[kind])
                run(hypothesis.seed(seed + turn)(kind))()
        turn += 1
    for name, count in sorted(COUNTS.items()):
        print(f"{count:7d}  {name}")
    print(f"{sum(COUNTS.values()):7d}  in all")


if __name__ == "__main__":
    main()
