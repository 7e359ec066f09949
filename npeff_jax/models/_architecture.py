"""What `from_huggingface` needs to know of an architecture."""

import dataclasses
from typing import Any

from npeff_jax._types import Example
from npeff_jax.models._weight_maps import Rule


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A Hugging Face class of models, for one configuration.

    Attributes:
        module: the Linen module. It takes an example, or examples with leading batch axes, and returns logits; values
            on the way are sown into ``"intermediates"`` at its top.
        rules: the map from a checkpoint's names to the module's variables.
        example: an example of any values, for shapes.
        ignored: patterns of names that a checkpoint may hold and the module does not need.
        head: a pattern of the variables' paths that belong to the classification head.
        base_prefix: what names begin with in a checkpoint with a head; those saved without one lack it.
        is_language_model: whether its classes are tokens rather than the configuration's labels.
    """

    module: Any
    rules: tuple[Rule, ...]
    example: Example
    ignored: tuple[str, ...] = ()
    head: str = r"params/classifier/.*"
    base_prefix: str = ""
    is_language_model: bool = False
