"""What is explained: `Model`, output families, and adapters that build a model from what users have."""

from npeff_jax.models._equinox import from_equinox as from_equinox
from npeff_jax.models._haiku import from_haiku as from_haiku
from npeff_jax.models._huggingface import NewHead as NewHead
from npeff_jax.models._huggingface import from_huggingface as from_huggingface
from npeff_jax.models._linen import from_linen as from_linen
from npeff_jax.models._model import IntermediatesFn as IntermediatesFn
from npeff_jax.models._model import Model as Model
from npeff_jax.models._model import check_model as check_model
from npeff_jax.models._nnx import from_nnx as from_nnx
from npeff_jax.models._outputs import Bernoulli as Bernoulli
from npeff_jax.models._outputs import Categorical as Categorical
from npeff_jax.models._outputs import Gaussian as Gaussian
from npeff_jax.models._outputs import Output as Output
from npeff_jax.models._processor import ImageProcessor as ImageProcessor
from npeff_jax.models._processor import TextProcessor as TextProcessor
from npeff_jax.models._processor import huggingface_processor as huggingface_processor
from npeff_jax.models._torch import from_torch as from_torch
from npeff_jax.models._tracr import encode_tokens as encode_tokens
from npeff_jax.models._tracr import from_tracr as from_tracr
from npeff_jax.models._verify import Verification as Verification
from npeff_jax.models._verify import verify as verify
from npeff_jax.models._verify_checkpoint import converter_layout as converter_layout
from npeff_jax.models._verify_checkpoint import verify_checkpoint as verify_checkpoint
