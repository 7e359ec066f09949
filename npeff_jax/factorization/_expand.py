"""Components set expansion (section 2.2): new components beside frozen ones, for examples of particular interest."""

import dataclasses
import os

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from npeff_jax._progress import Progress
from npeff_jax._sharding import replicate
from npeff_jax.factorization._checkpoints import Checkpoints
from npeff_jax.factorization._decompose import (
    algorithm_of,
    check_path,
    check_solver,
    default_solver,
    describe,
    settled,
    solve,
)
from npeff_jax.factorization._decomposition import Decomposition
from npeff_jax.factorization._fit import check_same_origin, fit_coefficients
from npeff_jax.factorization._loop import Callback
from npeff_jax.factorization._settings import Products, RowChoice, Solver, Stopping
from npeff_jax.factorization._source import source_of_pefs
from npeff_jax.factorization._stack import stack
from npeff_jax.factorization._start import start_vectors
from npeff_jax.pefs import FisherKind, Pefs


def expand(
    decomposition: Decomposition,
    pefs: Pefs,
    n_new: int,
    *,
    seed: int = 0,
    solver: Solver | None = None,
    stopping: Stopping | None = None,
    rows: RowChoice | None = None,
    mesh: Mesh | None = None,
    path: str | os.PathLike | None = None,
    checkpoints: Checkpoints | None = None,
    callback: Callback | None = None,
    progress: Progress = True,
) -> Decomposition:
    """Learn ``n_new`` components for ``pefs`` beside those of a decomposition, which stay as they are to the bit.

    Args:
        decomposition: the frozen components.
        pefs: the examples of interest, of the same model and kind.
        n_new: components to learn.
        seed: of the new components' start. W starts from a fit of the frozen ones.
        solver: as for `decompose`.
        stopping: as for `decompose`.
        rows: as for `decompose`. The kernel is that of [A; G_frozen].
        mesh: as for `decompose`.
        path: as for `decompose`.
        checkpoints: as for `decompose`.
        callback: as for `decompose`.
        progress: as for `decompose`.

    Returns:
        The frozen components first, in their order, then the new ones by contribution, with coefficients for ``pefs``.

    Raises:
        ValueError: PEFs of another model or kind, no examples, or more new components than rows.
    """
    check_path(path)
    check_same_origin(decomposition, pefs)
    solver = default_solver(decomposition.kind) if solver is None else solver
    check_solver(solver, decomposition.kind)
    if getattr(solver, "stiefel", False):
        raise ValueError("stiefel=True cannot hold with frozen components, which need not be orthonormal; drop it")
    own = stack(pefs)
    columns = np.union1d(decomposition.parameter_indices, own.parameter_indices)
    stacked = stack(pefs, parameter_indices=columns)
    if not 1 <= n_new <= stacked.A.shape[0]:
        raise ValueError(
            f"n_new={n_new} is not from 1 to the {stacked.A.shape[0]} rows of these PEFs ({stacked.n_examples} "
            "examples); choose fewer components or more examples"
        )
    n_frozen = decomposition.n_components
    frozen = np.zeros((n_frozen, len(columns)), np.float32)
    frozen[:, np.searchsorted(columns, decomposition.parameter_indices)] = decomposition.pseudo_fishers[:]
    source = source_of_pefs(pefs.schema, stacked, n_frozen + n_new, mesh, rows, Products.FLOAT32, frozen)
    new = start_vectors(source.rows, n_new, seed, nonnegative=decomposition.kind is FisherKind.DIAGONAL)
    G = jnp.concatenate([source.rows.coordinates(frozen), new])
    fitted = fit_coefficients(decomposition, pefs).coefficients
    W = replicate(np.pad(fitted, ((0, 0), (0, n_new))), source.rows.mesh)
    found = solve(
        source,
        algorithm_of(solver),
        W,
        G,
        stopping or Stopping(),
        {"seed": seed, "solver": describe(solver)} | source.notes,
        n_frozen=n_frozen,
        callback=callback,
        progress=progress,
        checkpoints=checkpoints,
    )
    # Some row spaces hold the frozen vectors as products; the result has the very numbers.
    vectors = np.concatenate([frozen, found.pseudo_fishers[n_frozen:]])
    return settled(dataclasses.replace(found, pseudo_fishers=vectors), path)
