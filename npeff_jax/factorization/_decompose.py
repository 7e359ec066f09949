"""`decompose`, the main entry point of the factorization."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from npeff_jax._checks import check_integer
from npeff_jax._identity import describe, tree_digest
from npeff_jax._progress import Progress, check_progress
from npeff_jax._sharding import check_mesh
from npeff_jax.factorization._arguments import (
    check_callback,
    check_n_components,
    check_path,
    check_pefs,
    check_room,
    check_start,
    check_type,
    check_vectors_fit,
    checked_solver,
)
from npeff_jax.factorization._checkpoints import Checkpoints, CheckpointStore
from npeff_jax.factorization._decomposition import Decomposition, finished, load_decomposition, loss_of
from npeff_jax.factorization._driver import Callback, iterate
from npeff_jax.factorization._finish import finish
from npeff_jax.factorization._fit import fit_coefficients, fit_tied
from npeff_jax.factorization._problem import Problem, of_stack
from npeff_jax.factorization._restarts import best_start, check_restarts, sentence
from npeff_jax.factorization._run import Stopping
from npeff_jax.factorization._stack import stack
from npeff_jax.factorization._tunings import Ties, Tuning, check_tunings
from npeff_jax.factorization.row_spaces import ModelRows, ProductPrecision, RowChoice, check_rows
from npeff_jax.factorization.solvers import Factors, InitialFactors, Solver
from npeff_jax.pefs import FisherKind, Pefs


def decompose(
    pefs: Pefs | ModelRows | Problem,
    n_components: int,
    *,
    seed: int = 0,
    tunings: Sequence[Tuning] | None = None,
    solver: Solver | None = None,
    stopping: Stopping | None = None,
    start: InitialFactors | None = None,
    restarts: int = 1,
    rows: RowChoice | None = None,
    products: ProductPrecision = ProductPrecision.FLOAT32,
    min_count: int = 1,
    mesh: Mesh | None = None,
    path: str | os.PathLike[str] | None = None,
    checkpoints: Checkpoints | None = None,
    callback: Callback | None = None,
    progress: Progress = True,
) -> Decomposition:
    """Decompose PEFs into shared components: F_i ≈ Σ_j W_ij H_j (eq. 4).

    Low-rank PEFs are decomposed by LRM-NPEFF, diagonal ones by D-NPEFF.

    Args:
        pefs: PEFs from `compute_pefs`, `model_rows` to work on the exact Fishers of a model, or a `Problem`, which
            already has its rows, devices and optional parts.
        n_components: r, the number of components.
        seed: seed of the initial factors.
        tunings: named components, defined by marks on examples (`Tuning`). They come first and count towards
            ``n_components``; the others are free and explain the rest.
        solver: by default `DampedALS` for low-rank PEFs and `HALS` for diagonal ones. `GradientDescent` and
            `Multiplicative` are the paper's algorithms. Or a `Solver` of your own.
        stopping: stopping criteria.
        start: initial W or G, instead of random ones.
        restarts: number of random starts to try, with seeds ``seed``, ``seed + 1``, …, on a quarter of the examples (at
            least four per component; all examples with tunings, a `Problem` or the rows of a model). The best start
            continues with all examples; ``settings["restarts"]`` and ``stopped`` give the losses of all starts.
        rows: how the rows are held; by default as estimated to be fastest. ``settings["row_space"]`` gives the reason.
        products: precision of the large matrix products.
        min_count: parameters with fewer non-zeros over all rows are pruned; ``settings`` records the energy lost.
        mesh: devices to use; by default JAX's default device. Rows and parameters are padded with zeros to a multiple
            of the devices.
        path: directory to save the result to, as by `Decomposition.save`. The pseudo-Fishers then stay on disk and are
            read by row, so they may be larger than memory. PEFs on disk may be larger than memory too, with
            ``rows=KernelRows()``, which needs memory for N² numbers and for blocks of rows.
        checkpoints: where to save the state of the iterations, and to resume from.
        callback: function of an `Iterate`, called after every window of steps; returning True ends the iterations.
        progress: True for a bar, False for none, a text stream for JSON lines.

    Returns:
        The components: unit-norm pseudo-Fishers, coefficients (which carry the scale), and the history. Losses are
        fractions of ‖F‖².

    Raises:
        ValueError: more components than rows, no examples, non-finite values, a solver for the other kind of PEFs,
            ``restarts`` together with ``start``, or rows or pseudo-Fishers that exceed memory.
        TypeError: an argument of the wrong type, such as a solver class instead of an instance.
        FileExistsError: ``path`` exists.
    """
    path = check_path(path)
    seed, n_components = check_integer("seed", seed, 0), check_integer("n_components", n_components)
    check_progress(progress)
    given = check_type("start", start, InitialFactors) or InitialFactors()
    check_type("stopping", stopping, Stopping)
    check_type("checkpoints", checkpoints, Checkpoints)
    check_callback(callback)
    check_mesh(mesh)
    restarts = check_restarts(restarts, given)
    settings: dict[str, Any] = {"seed": seed, "start": given.given}
    if given.given:  # a run with another start does not continue from the checkpoint
        settings["start_values"] = tree_digest({name: np.asarray(getattr(given, name)) for name in given.given})
    if restarts > 1:
        settings["restarts"] = restarts
    if isinstance(pefs, Problem):
        tunings = check_tunings(tunings, pefs.n_examples)
        if tunings and pefs.ties is not None:
            raise ValueError("this Problem has tunings of its own; pass one made without them, or no tunings=")
        solver = checked_solver(solver, pefs.kind, (*pefs.parts, *(("tunings",) if tunings else ())))
        problem = pefs
    else:
        kind = check_pefs(pefs)
        tunings = check_tunings(tunings, pefs.n_examples)
        solver = checked_solver(solver, kind, ("tunings",) if tunings else ())
        check_rows(rows, kind)
        settings["min_count"] = min_count = check_integer("min_count", min_count)
        check_type("products", products, ProductPrecision)
        check_room(n_components, len(tunings))
        problem = _problem_of(pefs, n_components, given, rows, products, min_count, mesh, path, progress)
    problem, settings = tuned(problem, tunings, settings)
    check_n_components(n_components, problem.rows.n_rows, problem.n_examples)
    if n_components <= problem.n_frozen:
        raise ValueError(f"n_components={n_components} counts the {problem.n_frozen} protected ones; ask for more")
    check_room(n_components - problem.n_frozen, problem.n_named)
    assert problem.origin is not None
    check_start(given, problem.n_examples, n_components, problem.origin.schema.layout.size, problem.kind)
    tried = None
    if restarts == 1:
        at = solver.start(problem, n_components, seed, given)
    else:
        whole_pefs = pefs if isinstance(pefs, Pefs) and problem.ties is None else None
        limits = stopping or Stopping()
        at, tried = best_start(problem, whole_pefs, n_components, seed, restarts, solver, limits, rows, progress)
    found = solve(problem, solver, at, stopping, settings, callback, progress, checkpoints)
    if tried is not None:
        stopped = f"{found.stopped}; {sentence(tried)}"
        found = dataclasses.replace(found, stopped=stopped, settings=found.settings | {"restarts": tried})
    if not problem.origin.exact and isinstance(pefs, Pefs):
        found = on_exact_products(found, pefs, problem.ties)
    return settled(found, path)


def tuned(problem: Problem, tunings: Sequence[Tuning], settings: dict[str, Any]) -> tuple[Problem, dict[str, Any]]:
    """Return the problem with named components, and the settings with a record of their tunings."""
    if not tunings:
        return problem, settings
    return problem.with_tunings(tunings), settings | {"tunings": [tuning.record() for tuning in tunings]}


def _problem_of(
    pefs: Pefs | ModelRows,
    r: int,
    start: InitialFactors,
    rows: RowChoice | None,
    products: ProductPrecision,
    min_count: int,
    mesh: Mesh | None,
    path: pathlib.Path | None,
    progress: Progress,
) -> Problem:
    """Make the problem of PEFs or of a model's rows, checking all arguments before rows are put on devices."""
    if isinstance(pefs, ModelRows):
        m, kind = pefs.model.space.size, FisherKind.LOW_RANK
        check_n_components(r, pefs.n_examples * pefs.rows_per_example, pefs.n_examples)
        check_start(start, pefs.n_examples, r, m, kind)
        check_vectors_fit(r, m, path)
        return Problem.of(pefs, mesh=mesh, progress=progress)
    stacked = stack(pefs, min_count=min_count)
    check_n_components(r, stacked.A.shape[0], stacked.n_examples)
    check_start(start, stacked.n_examples, r, pefs.schema.layout.size, pefs.schema.kind)
    check_vectors_fit(r, stacked.A.shape[1], path if rows is None or rows.exact else None)
    return of_stack(stacked, pefs.schema, rows, r, mesh, products, None)


def solve(
    problem: Problem,
    solver: Solver,
    start: Factors,
    stopping: Stopping | None,
    settings: dict[str, Any],
    callback: Callback | None,
    progress: Progress,
    checkpoints: Checkpoints | None,
) -> Decomposition:
    """Run the solver and put the result into its final form. Its pseudo-Fishers are formed when they are read."""
    stopping = stopping or Stopping()
    settings = settings | {"solver": describe(solver)}
    store = None
    if checkpoints is not None:
        store = CheckpointStore(checkpoints, identity_of(problem, start.W.shape[1], settings, stopping))
    outcome = iterate(solver, problem, start, stopping, progress=progress, callback=callback, store=store)
    if store:
        store.close()
    settings = settings | {"stopping": dataclasses.asdict(stopping)}
    if problem.ties is not None:  # the history contains the term of the ties
        settings |= {"loss": loss_of(problem, outcome.W, outcome.G), "history": WITH_TIES}
    return finished(problem, outcome.W, outcome.G, outcome.GG, outcome.history, outcome.stopped, settings)


def settled(found: Decomposition, path: pathlib.Path | None) -> Decomposition:
    """Form the pseudo-Fishers of a result, in memory or on disk block by block."""
    if path is None:
        return dataclasses.replace(found, pseudo_fishers=np.asarray(found.pseudo_fishers))
    found.save(path)
    return load_decomposition(path)


WITH_TIES = "with the term of the tunings"
"""Value of ``settings["history"]`` if the losses of the history are eq. 4 plus the term of the tunings."""


def on_exact_products(found: Decomposition, pefs: Pefs, ties: Ties | None = None) -> Decomposition:
    """Refit the coefficients of a sketched decomposition on exact products, and record both losses."""
    G = np.asarray(found.pseudo_fishers)
    exact, norm = dataclasses.replace(found, pseudo_fishers=G), found.settings["squared_norm"]
    if ties is None:
        fit = fit_coefficients(exact, pefs)
        W, loss, n_named = fit.coefficients, fit.loss, 0
    else:
        (W, loss), n_named = fit_tied(exact, pefs, ties), ties.pattern.shape[1]
    done = finish(W, G @ G.T, found.kind, norm, n_named=n_named)
    losses = {"sketched_loss": float(found.history.loss[-1]), "loss": loss}
    remarks = {"dead": done.dead, "duplicates": done.duplicates}
    settings = found.settings | losses | remarks
    return dataclasses.replace(found, coefficients=done.W, pseudo_fishers=G[done.order], settings=settings)


def identity_of(problem: Problem, r: int, settings: dict[str, Any], stopping: Stopping) -> dict[str, Any]:
    """Return the settings that must agree for a run to resume from another's checkpoints.

    Devices and limits may differ. The rows are compared by moments of their norms, which differ between subsets and
    normalizations.
    """
    origin = problem.origin
    assert origin is not None
    schema = origin.schema
    same = {"n_components": r, "n_frozen": problem.n_frozen} | settings
    same |= {name: value for name, value in origin.notes.items() if name != "row_space"}
    same |= {"row_space": type(problem.rows).__name__, "window": stopping.window}
    # without the probe of the function, which other devices round differently; its outputs determine the rows anyway
    same |= {name: value for name, value in schema.identity.items() if name not in ("function", "layout")}
    energy, place = origin.energy.astype(np.float64), np.linspace(0, 1, len(origin.energy))
    own = [origin.squared_norm, energy.sum(), energy @ place, energy @ np.cos(7 * place) ** 2]
    return same | {"rows": [float(x) for x in own], "parameters": len(origin.parameter_indices)}
