"""Components with a user-specified tuning: the user marks examples, and one column of W follows the marks.

Marks m_i ≥ 0 say how much of a concept example i has; some may be unknown. For each named component j (with a unit
vector), a penalty over the examples with a known mark is added to eq. 4:

    Σ_i λ_i (W_ij − s_j m_i)²,    λ_i = a_i / (1 − a_i),    s_j ≥ 0 the scale that minimises the sum.

The tie a_i in [0, 1] is `Tuning.follow` for m_i > 0 and `Tuning.avoid` for m_i = 0. The exact update of a coefficient
is W_ij = max(0, (1 − a_i) u + a_i s_j m_i), where u is its value without marks given all other components: a tie of 0
leaves the coefficient free, 1 fixes it at s_j m_i, and 1/2 gives the mean of the two.
"""

import csv
import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from npeff_jax._checks import check_integer, check_real, normalise
from npeff_jax._identity import tree_digest
from npeff_jax._types import Coefficients, ComponentGram
from npeff_jax.factorization._compile import full_precision, jit
from npeff_jax.factorization._nonnegative import hals_sweep
from npeff_jax.store import absolute_path


@dataclasses.dataclass(frozen=True, eq=False)
class Tuning:
    """A named component whose coefficients follow the user's marks on examples.

    Attributes:
        name: name of the component.
        marks: (n,), a mark per decomposed example: True or False, or a weight of at least zero; NaN or None if unknown.
            Only ratios of weights matter.
        follow: how tightly coefficients of examples with a positive mark are tied to their marks, from 0 (free) to 1
            (fixed, up to one common scale). The default is loose because a Boolean mark states presence, not amount;
            use more for weights that measure an amount.
        avoid: how tightly coefficients of examples with mark zero are tied to zero, from 0 (free) to 1 (always zero).

    Raises:
        ValueError: an empty name, a negative or infinite mark, or no positive mark.

    Examples:
        >>> task = npeff_jax.tasks.planted()
        >>> tuning = Tuning("first", task.coefficients[:, 0] > 0)
        >>> npeff_jax.decompose(task.pefs, 5, tunings=[tuning], progress=False).names
        {0: 'first'}
    """

    name: str
    marks: Any
    follow: float = 0.1
    avoid: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"Tuning(name={self.name!r}); expected a name, such as 'licence'")
        normalise(
            self,
            marks=_marks(self.name, self.marks),
            follow=check_real("follow", self.follow, 0.0, 1.0),
            avoid=check_real("avoid", self.avoid, 0.0, 1.0),
        )

    @classmethod
    def of_examples(cls, name: str, n_examples: int, yes: Any, no: Any = (), **ties: float) -> "Tuning":
        """Make a tuning from a few marked examples; the marks of all others are unknown.

        Args:
            name: name of the component.
            n_examples: n, the number of decomposed examples.
            yes: positions of examples with the concept.
            no: positions of examples without it.
            **ties: ``follow`` and ``avoid``.

        Raises:
            ValueError: a position out of range, or in both ``yes`` and ``no``.
        """
        n_examples = check_integer("n_examples", n_examples)
        marks = np.full(n_examples, np.nan)
        for argument, value, given in (("yes", 1.0, yes), ("no", 0.0, no)):
            at = _array(argument, given)
            if at.size and not np.issubdtype(at.dtype, np.integer):
                raise ValueError(
                    f"{argument}= has positions of dtype {at.dtype}; expected integers from 0 to {n_examples - 1}"
                )
            at = at.astype(np.int64).reshape(-1)
            if ((at < 0) | (at >= n_examples)).any():
                raise ValueError(
                    f"{argument}= has a position of {name!r} that is not from 0 to {n_examples - 1}; count examples "
                    "from zero"
                )
            if (~np.isnan(marks[at])).any():
                raise ValueError(f"an example of {name!r} is marked both ways; decide, or leave it out of yes= or no=")
            marks[at] = value
        return cls(name, marks, **ties)

    @property
    def known(self) -> np.ndarray:
        """(n,), whether each example has a known mark."""
        return ~np.isnan(self.marks)

    def record(self) -> dict[str, Any]:
        """Return a JSON-serialisable summary, which a result records."""
        counts = {
            "marked": int((self.marks > 0).sum()),
            "zero": int((self.marks == 0).sum()),
            "unknown": int((~self.known).sum()),
        }
        digest = tree_digest({"marks": np.nan_to_num(self.marks, nan=-1.0)})
        return {"name": self.name, "follow": self.follow, "avoid": self.avoid, **counts, "marks": digest}


class Ties(NamedTuple):
    """Marks and ties of the named components, as arrays on the devices.

    Attributes:
        pattern: (n, t), marks m, zero where unknown.
        tie: (n, t), ties a, zero where unknown.
    """

    pattern: Float[Array, "n t"]
    tie: Float[Array, "n t"]


def ties_of(tunings: Sequence[Tuning]) -> tuple[Float[np.ndarray, "n t"], Float[np.ndarray, "n t"]]:
    """Return the arrays of `Ties`. The marks of each tuning are scaled to a maximum of 1."""
    marks = np.stack([tuning.marks / np.nanmax(tuning.marks) for tuning in tunings], axis=1)
    follow, avoid = (np.array([getattr(tuning, name) for tuning in tunings]) for name in ("follow", "avoid"))
    tie = np.where(np.isnan(marks), 0.0, np.where(marks > 0, follow, avoid))
    return np.nan_to_num(marks).astype(np.float32), tie.astype(np.float32)


def check_tunings(tunings: Any, n_examples: int, taken: Sequence[str] = ()) -> tuple[Tuning, ...]:
    """Return the tunings as a tuple, after checking them.

    Raises:
        TypeError: an entry is not a `Tuning`.
        ValueError: marks for another number of examples, or a name that occurs twice or is already ``taken``.
    """
    if tunings is None:
        return ()
    if isinstance(tunings, Tuning):
        tunings = (tunings,)
    if isinstance(tunings, str | bytes | dict) or not hasattr(tunings, "__iter__"):
        raise TypeError(f"tunings is a {type(tunings).__name__}; pass a list of Tuning(name, marks)")
    found = tuple(tunings)
    names = list(taken)
    for tuning in found:
        if not isinstance(tuning, Tuning):
            raise TypeError(f"tunings has a {type(tuning).__name__}; pass a list of Tuning(name, marks)")
        if tuning.marks.shape != (n_examples,):
            raise ValueError(
                f"the marks of {tuning.name!r} are {tuning.marks.size}, but {n_examples} examples are decomposed; pass "
                "one per example, NaN where unknown"
            )
        if tuning.name in names:
            raise ValueError(f"two components are named {tuning.name!r}; give each component a distinct name")
        names.append(tuning.name)
    return found


def read_tunings(path: str | os.PathLike[str], *, follow: float = 0.1, avoid: float = 1.0) -> list[Tuning]:
    """Read tunings from a CSV file with a header of names, a column per concept and a row per example, in order.

    Cells are non-negative numbers, yes/no, or true/false; empty or "?" if unknown.

    Args:
        path: path of the file.
        follow: as for `Tuning`, for every column.
        avoid: as for `Tuning`, for every column.

    Raises:
        OSError: there is no such file.
        ValueError: an invalid cell, rows of different lengths, or a missing or repeated name.
    """
    source = absolute_path(path)
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, skipinitialspace=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8 ({error}); write names in the first line") from None
    while rows and not any(cell.strip() for cell in rows[-1]):
        rows.pop()
    if len(rows) < 2:
        raise ValueError(f"{path} has {len(rows)} lines; expected names in the first and a line per example")
    names = [cell.strip() for cell in rows[0]]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"{path} has the columns {names}; expected a name of its own for every column")
    for line, row in enumerate(rows[1:], 2):
        if len(row) != len(names) and not (len(names) == 1 and not row):  # one column: an empty line is unknown
            raise ValueError(f"{path}, line {line} has {len(row)} cells; expected {len(names)}")
    table = [[_cell(path, line, cell) for cell in (row or [""])] for line, row in enumerate(rows[1:], 2)]
    return [Tuning(name, column, follow, avoid) for name, column in zip(names, np.array(table).T, strict=True)]


@full_precision
def tied_sweep(W: Coefficients, b: Coefficients, P: ComponentGram, ties: Ties, first: int) -> Coefficients:
    """Return W after exact updates of the named columns with their scales s, and one `hals_sweep` over the rest.

    Args:
        W: coefficients.
        b: (n, r), numerator of the non-negative least-squares problem.
        P: (r, r), Gram matrix of the problem.
        ties: ties of the t named components.
        first: index of the first named component; protected ones come before it.
    """
    t, r = ties.pattern.shape[1], W.shape[1]

    def update(k: Any, W: Coefficients) -> Coefficients:
        j = first + k
        own = P[j, j]
        free = W[:, j] + (b[:, j] - W @ P[:, j]) / jnp.where(own > 0, own, 1.0)
        found = tied_column(free, ties.pattern[:, k], ties.tie[:, k])
        return W.at[:, j].set(jnp.where(own > 0, found, 0.0))

    W = jax.lax.fori_loop(0, t, update, W)
    if r == t:
        return W
    named = slice(first, first + t)
    rest = np.r_[0:first, first + t : r]
    others = hals_sweep(W[:, rest], b[:, rest] - W[:, named] @ P[named][:, rest], P[rest][:, rest])
    return W.at[:, rest].set(others)


def tied_column(u: Float[Array, "n"], m: Float[Array, "n"], a: Float[Array, "n"]) -> Float[Array, "n"]:
    """Return the w ≥ 0 and the s ≥ 0 that minimise Σ (w − u)² + λ (w − s m)², λ = a / (1 − a).

    With w eliminated, this is convex and piecewise quadratic in s: the curvature is a m² for an example with
    (1 − a) u + a s m > 0, and λ m² for one with w held at zero. Newton's method ends after a few steps.
    """
    held = jnp.where(a < 1, a / jnp.where(a < 1, 1 - a, 1.0), 0.0)  # λ; with a = 1, w is never held at zero

    def newton(_: Any, s: Float[Array, ""]) -> Float[Array, ""]:
        active = ((1 - a) * u + a * s * m > 0) | (a >= 1)
        weight = jnp.sum(jnp.where(active, a, held) * m * m)
        return jnp.maximum(jnp.sum(jnp.where(active, a * m * u, 0.0)) / jnp.where(weight > 0, weight, 1.0), 0.0)

    start = jnp.sum(a * m * jnp.maximum(u, 0)) / jnp.maximum(jnp.sum(a * m * m), jnp.finfo(u.dtype).tiny)
    s = jax.lax.fori_loop(0, NEWTON, newton, start)
    return jnp.maximum((1 - a) * u + a * s * m, 0.0)


NEWTON = 8
"""Newton steps for s. The function changes only when an example reaches or leaves zero; more steps never mattered."""


def tie_penalty(W_named: Float[Array, "n t"], ties: Ties) -> Float[Array, "t"]:
    """Return Σ_i λ_i (W_ij − s_j m_i)² of each named component at the best s_j, over examples with a tie below 1.

    The term added to eq. 4 is this times ‖g_j‖⁴ or ‖h_j‖², which equals adding it to the diagonal of WᵀW.
    """
    m, a = ties
    fixed = a >= 1
    strength = jnp.where(fixed, 0.0, a / jnp.where(fixed, 1.0, 1 - a))
    decides = jnp.where(jnp.any(fixed & (m > 0), axis=0), fixed * 1.0, strength)  # fixed ones determine the scale
    norm = jnp.sum(decides * m * m, axis=0)
    s = jnp.maximum(jnp.sum(decides * m * W_named, axis=0) / jnp.where(norm > 0, norm, 1.0), 0.0)
    return jnp.sum(strength * (W_named - s * m) ** 2, axis=0)


@jit
def solve_tied(b: Coefficients, P: ComponentGram, ties: Ties) -> Coefficients:
    """Solve for the coefficients of fixed vectors under the ties of named components, which come first."""
    start = jnp.zeros_like(b)
    return jax.lax.fori_loop(0, TIED_SWEEPS, lambda _, W: tied_sweep(W, b, P, ties, 0), start)


TIED_SWEEPS = 200
"""Sweeps of `solve_tied`; on a well-conditioned problem, every few sweeps gain a decimal digit."""


def _array(what: str, given: Any) -> np.ndarray:
    """Return the given marks as an array; raise ValueError if rows have different lengths."""
    try:
        return np.asarray(given)
    except ValueError:
        raise ValueError(f"{what} is ragged; expected one value after the other, not lists within a list") from None


def _marks(name: str, given: Any) -> Float[np.ndarray, "n"]:
    """Return marks as numbers, NaN where unknown."""
    if hasattr(given, "detach"):
        given = given.detach().cpu()
    if isinstance(given, np.ma.MaskedArray):
        given = np.ma.filled(given.astype(float), np.nan)
    given = given.to_numpy() if hasattr(given, "to_numpy") else _array(f"the marks of {name!r}", given)
    if given.dtype == object:
        given = np.array([np.nan if cell is None or str(cell) in ("<NA>", "NaT") else cell for cell in given.ravel()])
    if given.dtype.kind not in "bifu":
        raise ValueError(
            f"the marks of {name!r} are of dtype {given.dtype}; expected Booleans or numbers, NaN if unknown"
        )
    marks = given.astype(np.float64)
    if marks.ndim != 1:
        raise ValueError(f"the marks of {name!r} have shape {marks.shape}; expected (n,), one per example")
    bad = np.flatnonzero((marks < 0) | np.isinf(marks))
    if bad.size:
        raise ValueError(f"the marks of {name!r} have {marks[bad[0]]} at example {bad[0]}; expected at least 0, or NaN")
    if not (marks > 0).any():
        raise ValueError(f"the marks of {name!r} are positive for no example; mark at least one that has the concept")
    return marks


_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0, "": np.nan, "?": np.nan}


def _cell(path: Any, line: int, cell: str) -> float:
    text = cell.strip().lower()
    try:
        return _WORDS[text] if text in _WORDS else float(text)
    except ValueError:
        raise ValueError(
            f"{path}, line {line} has the mark {cell!r}; expected a number, yes, no, or an empty cell if unknown"
        ) from None
