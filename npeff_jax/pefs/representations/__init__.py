"""Representations of an example's Fisher by rows."""

from npeff_jax.pefs.representations._base import FisherKind as FisherKind
from npeff_jax.pefs.representations._base import Prediction as Prediction
from npeff_jax.pefs.representations._base import Pullback as Pullback
from npeff_jax.pefs.representations._base import Representation as Representation
from npeff_jax.pefs.representations._base import Rotation as Rotation
from npeff_jax.pefs.representations._base import scaled_cotangents as scaled_cotangents
from npeff_jax.pefs.representations._default import default_representation as default_representation
from npeff_jax.pefs.representations._diagonal import Diagonal as Diagonal
from npeff_jax.pefs.representations._low_rank import LowRank as LowRank
from npeff_jax.pefs.representations._low_rank import RowBasis as RowBasis
from npeff_jax.pefs.representations._sampled import Sampled as Sampled
