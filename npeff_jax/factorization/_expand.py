"""Components set expansion (section 2.2): learn new components beside frozen ones, for examples of interest."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from npeff_jax._checks import check_integer
from npeff_jax._progress import Progress, check_progress
from npeff_jax._sharding import check_mesh
from npeff_jax.factorization._arguments import check_callback, check_path, check_room, check_type, checked_solver
from npeff_jax.factorization._checkpoints import Checkpoints
from npeff_jax.factorization._decompose import settled, solve, tuned
from npeff_jax.factorization._decomposition import Decomposition
from npeff_jax.factorization._driver import Callback
from npeff_jax.factorization._fit import check_same_origin, fit_coefficients
from npeff_jax.factorization._problem import Problem
from npeff_jax.factorization._run import Stopping
from npeff_jax.factorization._tunings import Tuning, check_tunings
from npeff_jax.factorization.row_spaces import RowChoice, check_rows
from npeff_jax.factorization.solvers import InitialFactors, Solver, with_pattern
from npeff_jax.pefs import Pefs


def expand(
    decomposition: Decomposition,
    pefs: Pefs,
    n_new: int,
    *,
    seed: int = 0,
    tunings: Sequence[Tuning] | None = None,
    solver: Solver | None = None,
    stopping: Stopping | None = None,
    rows: RowChoice | None = None,
    mesh: Mesh | None = None,
    path: str | os.PathLike[str] | None = None,
    checkpoints: Checkpoints | None = None,
    callback: Callback | None = None,
    progress: Progress = True,
) -> Decomposition:
    """Learn ``n_new`` components for ``pefs`` beside those of a decomposition, whose vectors stay bit-identical.

    Args:
        decomposition: the frozen components.
        pefs: PEFs of the examples of interest, of the same model and kind.
        n_new: number of components to learn.
        seed: seed of the initial new components. W of the frozen ones starts from a fit.
        tunings: as for `decompose`; named components count towards ``n_new``, and come after the frozen ones.
        solver: as for `decompose`.
        stopping: as for `decompose`.
        rows: as for `decompose`. The kernel form uses the Gram matrix of [A; G_frozen].
        mesh: as for `decompose`.
        path: as for `decompose`.
        checkpoints: as for `decompose`.
        callback: as for `decompose`.
        progress: as for `decompose`.

    Returns:
        The frozen components in their order, then named ones, then new ones by contribution, with the coefficients of
        ``pefs``.

    Raises:
        ValueError: PEFs of another model or kind, no examples, or more new components than rows.
    """
    path = check_path(path)
    check_same_origin(decomposition, pefs)
    tunings = check_tunings(tunings, pefs.n_examples, taken=list(decomposition.names.values()))
    solver = checked_solver(solver, decomposition.kind, ("frozen", *(("tunings",) if tunings else ())))
    check_rows(rows, decomposition.kind)
    seed, n_new = check_integer("seed", seed, 0), check_integer("n_new", n_new)
    check_progress(progress)
    check_type("stopping", stopping, Stopping)
    check_type("checkpoints", checkpoints, Checkpoints)
    check_callback(callback)
    check_mesh(mesh)
    if not 1 <= n_new <= pefs.total_rows:
        raise ValueError(
            f"n_new={n_new} is not from 1 to the {pefs.total_rows} rows of these PEFs ({pefs.n_examples} "
            "examples); choose fewer components or more examples"
        )
    check_room(n_new, len(tunings), "n_new")
    r = decomposition.n_components + n_new
    problem = Problem.of(pefs, rows=rows, n_components=r, mesh=mesh, protected=decomposition)
    settings: dict[str, Any] = {"seed": seed}
    if decomposition.names:
        settings["names"] = [[j, name] for j, name in decomposition.names.items()]
    problem, settings = tuned(problem, tunings, settings)
    fitted = fit_coefficients(decomposition, pefs).coefficients
    drawn = solver.initial_coefficients(problem, r, seed)[:, -n_new:]
    W = with_pattern(problem, np.concatenate([fitted, drawn], axis=1))
    start = solver.start(problem, r, seed, InitialFactors(coefficients=W))
    return settled(solve(problem, solver, start, stopping, settings, callback, progress, checkpoints), path)
