"""How many examples a batch may have."""

from npeff_jax._sharding import round_up

DENSE_BYTES = 64 << 20
"""Dense rows a device holds at a time where memory does not bind: more gained nothing on a CPU."""

MOST_EXAMPLES = 64
"""An upper bound a device: the activations of small models with long inputs would outgrow the rows."""


def choose_batch_size(entries: int, n_examples: int, n_devices: int) -> int:
    """Examples a batch, over all devices, for rows of ``entries`` numbers an example."""
    each = max(1, min(MOST_EXAMPLES, DENSE_BYTES // (4 * entries)))
    return min(each * n_devices, round_up(n_examples, n_devices))
