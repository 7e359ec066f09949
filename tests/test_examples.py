"""Every way in for examples gives the same arrays by position, or is refused by name."""

from collections import UserDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from npeff_jax._examples import choose_examples, count_examples, examples_digest, slice_examples

pytestmark = pytest.mark.fast

X = np.arange(36, dtype=np.float32).reshape(12, 3)


class OneAtATime:
    """A torch map-style data set: an integer gives an example, anything else an error."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        if not isinstance(i, int):
            raise TypeError("an int")
        return {"x": X[i]}


class Augmented:
    """A data set with random augmentation: other values at every read."""

    def __init__(self):
        self.random = np.random.default_rng(0)

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return {"x": X[int(i)] + self.random.normal(size=3)}


def test_values_that_change_between_two_reads():
    with pytest.raises(ValueError, match="examples has other values for example 11 each time it is read"):
        examples_digest(Augmented())


def test_a_batch_of_an_arrow_table():
    pa = pytest.importorskip("pyarrow")
    columns = {name: X[:, i] for i, name in enumerate("abc")}
    found = slice_examples(pa.record_batch(columns), slice(3, 5))
    np.testing.assert_array_equal(np.stack([found[name] for name in "abc"], axis=1), X[3:5])


class SlicesOnly:
    def __len__(self):
        return 12

    def __getitem__(self, i):
        assert isinstance(i, slice)
        return {"x": X[i]}


class Lists:
    """As a Hugging Face data set: a slice or a list of positions gives a dictionary of lists."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        if isinstance(i, np.ndarray):
            raise TypeError("no arrays")
        return {"x": X[i].tolist()}


class ListOfArrays:
    """A slice gives a list of examples, which could be mistaken for the leaves of one."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return [{"x": row} for row in X[i]] if isinstance(i, slice) else {"x": X[i]}


def table():
    pd = pytest.importorskip("pandas")
    return pd.DataFrame(X[::-1], columns=list("abc")).iloc[::-1]


def tensors():
    torch = pytest.importorskip("torch")
    return {"x": torch.tensor(X, requires_grad=True)}


SAME = {
    "mapping": lambda: UserDict(x=X),
    "nested": lambda: UserDict(x=X.tolist()),
    "jax": lambda: {"x": jnp.asarray(X)},
    "torch": tensors,
    "big-endian": lambda: {"x": X.astype(">f4")},
    "lists": lambda: {"x": X.tolist()},
    "list of mappings": lambda: [{"x": row.tolist()} for row in X],
    "one at a time": OneAtATime,
    "slices only": SlicesOnly,
    "source of lists": Lists,
    "source of lists of examples": ListOfArrays,
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_examples_whatever_they_come_as(name):
    given, plain = SAME[name](), {"x": X}
    assert count_examples(given) == 12
    rows = np.array([7, 0, 3])
    for part in (slice(2, 5), rows, np.arange(12) % 5 == 0):
        np.testing.assert_array_equal(slice_examples(given, part)["x"], X[part])
    chosen = choose_examples(given, rows)
    assert count_examples(chosen) == 3
    np.testing.assert_array_equal(slice_examples(chosen, slice(1, 3))["x"], X[rows][1:3])
    assert examples_digest(given) == examples_digest(plain)
    assert examples_digest(choose_examples(given, np.arange(12)[::-1])) != examples_digest(plain)


def test_tables_go_by_position():
    columns = slice_examples(table(), slice(0, 12))
    np.testing.assert_array_equal(np.stack([columns[c] for c in "abc"], 1), X)
    np.testing.assert_array_equal(slice_examples({"a": table()["a"]}, np.array([2, 0]))["a"], X[[2, 0], 0])


def test_bfloat16_tensors_keep_their_bits():
    torch = pytest.importorskip("torch")
    found = slice_examples(torch.tensor(X).to(torch.bfloat16), slice(0, 2))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), X[:2])


def loader():
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(X)


def sparse():
    import scipy.sparse

    return scipy.sparse.eye_array(3).tocsr()


REFUSED = {
    "nothing": (lambda: {}, "no arrays"),
    "no examples": (lambda: X[:0], "no examples in this pytree"),
    "an empty source": (lambda: choose_examples(OneAtATime(), np.zeros(0, int)), "no examples in this source"),
    "a scalar": (lambda: {"x": X, "y": 3}, r"examples\['y'\] is a scalar"),
    "unequal": (lambda: {"x": X, "y": X[:3]}, "different leading axes"),
    "masked": (lambda: {"x": np.ma.masked_array(X, X > 3)}, "masked array"),
    "texts": (lambda: ["a", "b"], "tokenizer"),
    "a text": (lambda: "abc", "tokenize first"),
    "an array of texts": (lambda: {"text": np.array(["a", "b"])}, r"examples\['text'\] holds texts; tokenize first"),
    "objects": (lambda: np.array([None, 1.0], object), "empty entries"),
    "dates": (lambda: np.array(["2020-01-01"], "M8[D]"), "datetime64"),
    "ragged": (lambda: {"ids": [[1, 2], [3]]}, r"examples\['ids'\] has rows of different lengths"),
    "long integers": (lambda: {"ids": np.array([1, 2**40])}, "beyond 32 bits"),
    "a generator": (lambda: (row for row in X), "generator, which can only be iterated"),
    "a loader": (loader, r"DataLoader, .*loader\.dataset"),
    "keys": (lambda: jax.random.split(jax.random.key(0), 3), "random keys"),
    "sparse": (sparse, r"sparse matrix; pass \.toarray"),
    "a function": (lambda: len, "is no array"),
    "keys of two types": (lambda: {"a": X, 1: X}, "keys of different types"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_by_name(name):
    make, sentence = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=sentence):
        slice_examples((examples := make()), slice(0, count_examples(examples)))


def test_an_error_of_the_users_source_is_shown():
    class Broken(OneAtATime):
        def __getitem__(self, i):
            raise OSError("disk gone")

    with pytest.raises(ValueError, match="Broken could not be read at positions 0, 1: OSError: disk gone"):
        slice_examples(Broken(), slice(0, 2))
