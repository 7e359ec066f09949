"""What a result must know about its problem: where the rows came from, as JSON where it is recorded."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float, Int

from npeff_jax._checks import slice_examples
from npeff_jax._parameters import fingerprint
from npeff_jax._types import RowArray
from npeff_jax.factorization.row_spaces import ModelRows
from npeff_jax.pefs import Kind, Schema

SKETCHED = "of the sketched problem"
"""What ``settings["history"]`` says where the losses on the way are not those of the rows themselves."""


@runtime_checkable
class Components(Protocol):
    """Given components, such as a `Decomposition`."""

    @property
    def pseudo_fishers(self) -> RowArray: ...
    @property
    def parameter_indices(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """What a result must know about its problem, on the host.

    Attributes:
        schema: of the PEFs.
        parameter_indices: (m',).
        squared_norm: ‖F‖², in float64.
        owner: (N,), the example of each row.
        energy: (N,), ‖a‖² of each row.
        frozen: (f, m'), the protected vectors, to the bit.
        exact: whether products of the row space are those of the rows.
        notes: for the result's settings.
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
    """Return the schema that PEFs of the rows of a model would have."""
    model, n = source.model, source.n_examples
    return Schema(
        kind=Kind.LOW_RANK,
        representation={"name": "ModelRows"},
        normalization="before",
        model=model.fingerprint,
        examples=fingerprint(slice_examples(source.examples, slice(0, n))),
        layout=model.space.layout,
        n_examples=n,
        n_classes=source.n_classes,
        keep=source.rows_per_example * model.space.size,
        precision=source.precision,
        output=describe(model.output),
    )


def describe(choice: Any) -> dict[str, Any]:
    """Return a frozen choice as JSON: its fields, and its name under ``"name"``."""
    fields = dataclasses.fields(choice) if dataclasses.is_dataclass(choice) else ()
    return {"name": type(choice).__name__} | {f.name: plain(getattr(choice, f.name)) for f in fields}


def plain(value: Any) -> Any:
    """Return a setting as JSON has it: NumPy's scalars as Python's, what JSON has not by its ``repr``."""
    if isinstance(value, np.generic | jax.Array) and np.ndim(value) == 0:
        return value.item()
    return value if isinstance(value, bool | int | float | str | None) else repr(value)
