"""Model and examples to PEFs: per-example Fisher information matrices, sparsified, in memory or on disk."""

from npeff_jax.pefs._pefs import Pefs as Pefs
from npeff_jax.pefs._representation import Diagonal as Diagonal
from npeff_jax.pefs._representation import LowRank as LowRank
from npeff_jax.pefs._representation import Normalization as Normalization
from npeff_jax.pefs._representation import Rows as Rows
from npeff_jax.pefs._representation import Sampled as Sampled
from npeff_jax.pefs._schema import Kind as Kind
from npeff_jax.pefs._schema import Schema as Schema
