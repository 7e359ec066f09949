"""On disk: zarr3 arrays through TensorStore, and a manifest that says how much of them is committed."""

from npeff_jax.pefs.store._arrays import StoredArray as StoredArray
from npeff_jax.pefs.store._arrays import WidenedArray as WidenedArray
from npeff_jax.pefs.store._arrays import create_array as create_array
from npeff_jax.pefs.store._arrays import open_array as open_array
from npeff_jax.pefs.store._arrays import remove_partial_writes as remove_partial_writes
from npeff_jax.pefs.store._lock import WriterLock as WriterLock
from npeff_jax.pefs.store._manifest import read_manifest as read_manifest
from npeff_jax.pefs.store._manifest import write_manifest as write_manifest
