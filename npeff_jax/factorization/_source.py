"""What is decomposed, prepared: rows on the devices, and what the result must know about them."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from npeff_jax._examples import examples_digest, first_example
from npeff_jax._identity import describe
from npeff_jax._progress import Progress
from npeff_jax._sharding import factorization_mesh, fetch
from npeff_jax.factorization._choose import choose
from npeff_jax.factorization._settings import Dense, Kernel, Products, RowChoice, Sparse
from npeff_jax.factorization._stack import Stack
from npeff_jax.factorization.rows import (
    DenseRows,
    KernelRows,
    ModelRows,
    RowSpace,
    SketchedRows,
    SparseRows,
    kernel_of_model,
)
from npeff_jax.pefs import FisherKind, Schema


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Rows and their origin.

    Attributes:
        schema: of the PEFs.
        rows: A.
        owner: (N,), the example of each row.
        energy: (N,), ‖a‖² of each row.
        n_examples: n.
        squared_norm: ‖F‖².
        parameter_indices: (m',).
        notes: for the result's settings.
    """

    schema: Schema
    rows: RowSpace
    owner: Int[np.ndarray, "N"]
    energy: Float[np.ndarray, "N"]
    n_examples: int
    squared_norm: float
    parameter_indices: Int[np.ndarray, "m_kept"]
    notes: dict[str, Any]


def source_of_pefs(
    schema: Schema,
    stacked: Stack,
    r: int,
    mesh: Any,
    given: RowChoice | None,
    products: Products,
    frozen: Float[np.ndarray, "f m_kept"] | None = None,
) -> Source:
    """Put stacked rows on the devices of ``mesh``, in the given row space or the one that costs least."""
    line = factorization_mesh(mesh)
    choice, reason = choose(stacked, r, schema.kind, list(line.devices.flat), given)
    notes = {"row_space": reason, "products": products.value, "lost_energy": stacked.lost_energy}
    rows: RowSpace
    match choice:
        case Dense():
            rows = DenseRows.of(stacked.A, line, products)
        case Sparse():
            if products is not Products.FLOAT32:
                raise ValueError(f"products={products.value} is for Dense() and Kernel(); sparse ones are float32")
            rows = SparseRows.of(stacked.A, line, r)
        case Kernel(sketch=None):
            rows = KernelRows.of(stacked.A, line, products.value, frozen)
        case Kernel(sketch=int(size)):
            if frozen is not None:
                raise ValueError("the sketched kernel cannot hold frozen components; expand with Kernel() or Sparse()")
            rows = sketched = SketchedRows.of(stacked.A, line, size)
            notes["sketch_error"] = sketched.error
    return Source(
        schema=schema,
        rows=rows,
        owner=stacked.owner,
        energy=stacked.energy,
        n_examples=stacked.n_examples,
        squared_norm=stacked.squared_norm,
        parameter_indices=stacked.parameter_indices,
        notes=notes,
    )


def source_of_model(model_rows: ModelRows, mesh: Any, progress: Progress) -> Source:
    """The exact kernel of a model, without sparsification."""
    model, n, c = model_rows.model, model_rows.n_examples, model_rows.rows_per_example
    rows, norms = kernel_of_model(model_rows, factorization_mesh(mesh), progress)
    if not np.isfinite(norms).all():
        bad = int(np.flatnonzero(~np.isfinite(norms))[0])
        raise ValueError(f"the Fisher of example {bad} is not finite; clean or drop it")
    schema = Schema(
        kind=FisherKind.LOW_RANK,
        representation={"name": "ModelRows"},
        normalization="before",
        model=model.fingerprint,
        examples=examples_digest(model_rows.examples),
        constants=model.constants_digest,
        function=model.probe(first_example(model_rows.examples)),
        output=describe(model.output),
        layout=model.space.layout,
        n_examples=n,
        n_classes=model_rows.n_classes,
        keep=c * model.space.size,
        precision=model_rows.precision,
    )
    notes = {"row_space": "the model itself: exact kernel by backward passes", "lost_energy": 0.0}
    owner = np.repeat(np.arange(n), c)
    energy = fetch(jnp.diagonal(rows.Q))[: n * c]
    return Source(schema, rows, owner, energy, n, float((norms > 0).sum()), np.arange(model.space.size), notes)
