"""Arrays and manifests on disk, for PEFs and decompositions. A missing chunk raises; it is never read as zeros."""

from npeff_jax.store._arrays import StoredArray as StoredArray
from npeff_jax.store._arrays import WidenedArray as WidenedArray
from npeff_jax.store._arrays import create_array as create_array
from npeff_jax.store._arrays import describe_arrays as describe_arrays
from npeff_jax.store._arrays import open_array as open_array
from npeff_jax.store._arrays import open_arrays as open_arrays
from npeff_jax.store._arrays import remove_partial_writes as remove_partial_writes
from npeff_jax.store._files import DamageError as DamageError
from npeff_jax.store._files import WriterLock as WriterLock
from npeff_jax.store._files import absolute_path as absolute_path
from npeff_jax.store._files import read_manifest as read_manifest
from npeff_jax.store._files import writable_path as writable_path
from npeff_jax.store._files import write_manifest as write_manifest
