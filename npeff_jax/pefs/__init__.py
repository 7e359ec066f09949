"""Model and examples to PEFs: per-example Fisher information matrices, sparsified, in memory or on disk."""

from npeff_jax.pefs._batch import BatchRows as BatchRows
from npeff_jax.pefs._digest import examples_digest as examples_digest
from npeff_jax.pefs._driver import OnExisting as OnExisting
from npeff_jax.pefs._driver import compute_pefs as compute_pefs
from npeff_jax.pefs._files import load_pefs as load_pefs
from npeff_jax.pefs._norms import NormSummary as NormSummary
from npeff_jax.pefs._pefs import Pefs as Pefs
from npeff_jax.pefs._plan import Plan as Plan
from npeff_jax.pefs._plan import plan as plan
from npeff_jax.pefs._pure import fisher_vector_product as fisher_vector_product
from npeff_jax.pefs._pure import pef_rows as pef_rows
from npeff_jax.pefs._representation import Diagonal as Diagonal
from npeff_jax.pefs._representation import Keep as Keep
from npeff_jax.pefs._representation import LowRank as LowRank
from npeff_jax.pefs._representation import Normalization as Normalization
from npeff_jax.pefs._representation import PerRow as PerRow
from npeff_jax.pefs._representation import Rows as Rows
from npeff_jax.pefs._representation import Sampled as Sampled
from npeff_jax.pefs._representation import SharedSupport as SharedSupport
from npeff_jax.pefs._rows import ExampleRows as ExampleRows
from npeff_jax.pefs._schema import Kind as Kind
from npeff_jax.pefs._schema import Schema as Schema
from npeff_jax.pefs._selection import LeafRows as LeafRows
from npeff_jax.pefs._selection import Selected as Selected
from npeff_jax.pefs._selection import largest as largest
