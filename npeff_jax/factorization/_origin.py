"""Provenance of a problem, which a result records: where its rows came from."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from npeff_jax._examples import examples_digest, first_example
from npeff_jax._identity import describe
from npeff_jax._types import RowArray
from npeff_jax.factorization.row_spaces import ModelRows
from npeff_jax.pefs import FisherKind, Schema

SKETCHED = "of the sketched problem"
"""Value of ``settings["history"]`` if the losses of the history are those of the sketched problem."""


@runtime_checkable
class Components(Protocol):
    """Protocol of given components, such as a `Decomposition`."""

    @property
    def pseudo_fishers(self) -> RowArray: ...
    @property
    def parameter_indices(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """Host-side data of a problem that a result needs.

    Attributes:
        schema: schema of the PEFs.
        parameter_indices: (m',).
        squared_norm: ‖F‖², in float64.
        owner: (N,), the example of each row.
        energy: (N,), ‖a‖² of each row.
        frozen: (f, m'), the protected vectors, bit-identical to those given.
        exact: whether the row space computes exact products of the rows.
        notes: entries for the settings of the result.
    """

    schema: Schema
    parameter_indices: Int[np.ndarray, "m_kept"]
    squared_norm: float
    owner: Int[np.ndarray, "N"]
    energy: Float[np.ndarray, "N"]
    frozen: Float[np.ndarray, "f m_kept"]
    exact: bool
    notes: dict[str, Any]


def schema_of_model(source: ModelRows) -> Schema:
    """Return the schema of the PEFs that these rows of a model represent."""
    model = source.model
    return Schema(
        kind=FisherKind.LOW_RANK,
        representation={"name": "ModelRows"},
        normalization="before",
        model=model.fingerprint,
        examples=examples_digest(source.examples),
        constants=model.constants_digest,
        function=model.probe(first_example(source.examples)),
        layout=model.space.layout,
        n_examples=source.n_examples,
        n_classes=source.n_classes,
        keep=source.rows_per_example * model.space.size,
        precision=source.precision,
        output=describe(model.output),
    )
