"""Checks of the arguments of `decompose` and `expand`: one sentence each, before any long work."""

import enum
import os
import pathlib
from typing import Any

import jax
import numpy as np

from npeff_jax._machine import size_text, usable_on_host
from npeff_jax.factorization.row_spaces import ModelRows
from npeff_jax.factorization.solvers import HALS, DampedALS, InitialFactors, Solver
from npeff_jax.pefs import FisherKind, Pefs
from npeff_jax.store import writable_path


def check_type(name: str, value: Any, expected: type) -> Any:
    """Return ``value``, or raise TypeError unless it is None or of the expected type."""
    if value is None or isinstance(value, expected):
        return value
    wanted = f"an instance of {expected.__name__}"
    if issubclass(expected, enum.Enum):
        wanted = " or ".join(f"{expected.__name__}.{member.name}" for member in expected)
    if isinstance(value, type):
        raise TypeError(f"{name}={value.__name__} is a class; pass {wanted}, such as {value.__name__}()")
    got = f"{name}={value!r}" if isinstance(value, str | int | float) else name
    raise TypeError(f"{got} is of type {type(value).__name__}; pass {wanted}")


def check_callback(callback: Any) -> None:
    """Raise TypeError unless ``callback`` is None or callable."""
    if callback is not None and not callable(callback):
        raise TypeError(f"callback={callback!r} is a {type(callback).__name__}; pass a function of an Iterate, or None")


def check_path(path: str | os.PathLike[str] | None) -> pathlib.Path | None:
    """Return the path of the result, or raise if nothing can be saved there."""
    if path is None:
        return None
    target = writable_path(path)
    if target.exists():
        raise FileExistsError(f"{path} exists; choose another path or remove it first")
    if jax.process_count() > 1:
        raise ValueError("path= is for one process; decompose without it and save the result in the first process")
    return target


def check_pefs(pefs: Any) -> FisherKind:
    """Return the kind of ``pefs``, or raise TypeError if they are not PEFs."""
    if isinstance(pefs, ModelRows):
        return FisherKind.LOW_RANK
    if isinstance(pefs, Pefs):
        return pefs.schema.kind
    what = f"a {type(pefs).__name__}"
    if isinstance(pefs, list | tuple):
        what += f" of {len(pefs)}; sets of PEFs are decomposed one by one, or computed together"
    raise TypeError(f"pefs is {what}; pass one Pefs (of compute_pefs or load_pefs), model_rows(...) or a Problem")


def checked_solver(solver: Any, kind: FisherKind, parts: tuple[str, ...]) -> Solver:
    """Return the given solver, or the default one for this kind of PEFs, after checking that it suits the problem.

    Raises:
        TypeError: the solver is not a `Solver`, or not hashable.
        ValueError: the solver is for another kind of PEFs, or does not support ``parts`` of the problem.
    """
    if solver is None:
        solver = DampedALS() if kind is FisherKind.LOW_RANK else HALS()
    check_type("solver", solver, Solver)
    try:
        hash(solver)
    except TypeError:
        raise TypeError(
            f"solver={type(solver).__name__} is not hashable; make it a frozen dataclass with plain numbers as fields"
        ) from None
    solver.check(kind, parts)
    return solver


def check_n_components(n_components: int, n_rows: int, n_examples: int) -> None:
    """Raise ValueError unless 1 <= r <= N."""
    if not 1 <= n_components <= n_rows:
        raise ValueError(
            f"n_components={n_components} is not from 1 to the {n_rows} rows of A ({n_examples} examples); "
            "choose fewer components or compute more PEFs"
        )


def check_room(n_components: int, n_named: int, argument: str = "n_components") -> None:
    """Raise ValueError if there are more named components than components."""
    if n_named > n_components:
        raise ValueError(f"there are {n_named} tunings and {argument}={n_components}, which counts them; ask for more")


def check_start(start: InitialFactors, n: int, r: int, m: int, kind: FisherKind) -> None:
    """Raise ValueError if a given W or G has the wrong shape, non-finite values, or values of the wrong sign."""
    for name, shape, nonnegative in (
        ("coefficients", (n, r), True),
        ("pseudo_fishers", (r, m), kind is FisherKind.DIAGONAL),
    ):
        given = getattr(start, name)
        if given is None:
            continue
        sign = ", non-negative" if nonnegative else ""
        if np.shape(given) != shape:
            raise ValueError(f"start.{name} has shape {np.shape(given)}; expected {shape}{sign}")
        if not np.isfinite(np.asarray(given)).all():
            raise ValueError(f"start.{name} has values that are not finite; expected finite ones")
        if nonnegative and not (np.asarray(given) >= 0).all():
            raise ValueError(f"start.{name} has negative values; expected {shape}{sign}")


def check_vectors_fit(r: int, m: int, path: pathlib.Path | None) -> None:
    """Raise ValueError if the pseudo-Fishers would be held in memory and do not fit."""
    if path is None and 4 * r * m > usable_on_host():
        raise ValueError(
            f"{r} pseudo-Fishers over {m} parameters are {size_text(4 * r * m)} and would be in memory, of which "
            f"{size_text(usable_on_host())} may be used; pass path= to keep them on disk, fewer components or a larger "
            "min_count"
        )
