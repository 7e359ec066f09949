"""Selection of an example's kept entries inside the compiled program, and when to use it."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from npeff_jax._checks import check_choice
from npeff_jax.pefs._device_rows import DeviceRows
from npeff_jax.pefs._device_selection import LIMIT, Kept
from npeff_jax.pefs._keep import Selection
from npeff_jax.pefs._rows import ExampleRows
from npeff_jax.pefs.representations import FisherKind, Representation

SelectOn = Literal["auto", "host", "device"]
"""Where the entries to keep are selected. "auto" means on the device for rows on an accelerator, else on the host."""

WORTH = 16
"""Smallest ratio of entries to kept entries of an example for selection on an accelerator; below it, the selection
needs more memory than the rows."""


class ExampleEntries(NamedTuple):
    """Result of selection on the devices for one example: kept entries and small matrices, without dense rows.

    On the host the same fields are NumPy arrays.

    Attributes:
        kept: kept entries, and products of kept and dropped entries.
        gram: (c, c), inner products of all rotated rows.
        leaf_norms: squared norm of each leaf's part; non-finite if a gradient is.
        scale: factor that the rows were divided by.
        trace: trace of F, divided by scale².
        n_rows: number of rows, from the first, that represent the example.
        logits: logits of the example.
        lost_mass: probability of the classes without a row.
        lost_trace: estimated fraction of the trace of these classes.
    """

    kept: Kept
    gram: Float[Array, "c c"]
    leaf_norms: Float[Array, "leaves"]
    scale: Float[Array, ""]
    trace: Float[Array, ""]
    n_rows: Int[Array, ""]
    logits: Float[Array, "C"]
    lost_mass: Float[Array, ""]
    lost_trace: Float[Array, ""]


def entries_of(representation: Representation, keep: Selection, one: ExampleRows) -> ExampleEntries:
    """Rotate the rows of one example and select entries. Pure: it is jitted and mapped after `example_rows`."""
    turned = representation.rotation(one.gram, one.n_rows, jnp)
    leaves = [[row.reshape(-1) for part in parts for row in part] for parts in zip(*one.blocks, strict=True)]
    kept = keep.select_on_device(DeviceRows(leaves, turned.matrix, turned.n_rows))
    n_rows = jnp.asarray(turned.n_rows, jnp.int32)
    return ExampleEntries(kept, turned.gram, *one[2:5], n_rows, *one[6:])


def selects_on_device(
    select_on: SelectOn, mesh: Mesh, representation: Representation, keep: Selection, c: int, m: int
) -> bool:
    """Decide whether entries are selected on the devices, for examples with up to c rows over m parameters.

    Raises:
        ValueError: ``select_on="device"``, but the selection or the rotation has no device version.
    """
    check_choice("select_on", select_on, get_args(SelectOn))
    accelerated = mesh.devices.flat[0].platform != "cpu"
    if select_on == "host" or (select_on == "auto" and not accelerated):
        return False
    c = 1 if representation.kind is FisherKind.DIAGONAL else c
    reason = _hindrance(representation, keep, c, m)
    if reason and select_on == "device":
        raise ValueError(f'select_on="device" is not possible: {reason}; pass "auto" or "host"')
    return not reason and (select_on == "device" or keep.width(c, m) * WORTH <= c * m)


def _hindrance(representation: Representation, keep: Selection, c: int, m: int) -> str:
    """Return why the selection cannot be compiled; empty if it can."""
    if not keep.on_device:
        return f"{type(keep).__name__} has no select_on_device of its own"
    if c * m >= LIMIT:
        return f"an example has {c * m} entries, and at most {LIMIT - 1} can be counted"
    try:
        rotation: Any = lambda gram, n_rows: representation.rotation(gram, n_rows, jnp)[:3]  # noqa: E731
        jax.eval_shape(rotation, jax.ShapeDtypeStruct((c, c), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        return f"{type(representation).__name__}.rotation cannot be traced ({type(error).__name__})"
    return ""
