"""`Schema`: model, examples and settings of a set of PEFs, compared before they are read or resumed."""

import dataclasses
import enum
from typing import Any

from npeff_jax._identity import Identity
from npeff_jax._parameters import ParameterLayout
from npeff_jax.pefs.representations import FisherKind

SCHEMA_VERSION = 4
"""Version of the schema. Version 1 had no output family (always a softmax), version 2 no range finder. Version 3
identified models by their parameters only, and missing chunks of its arrays are zeros."""

READABLE_VERSIONS = (1, 2, 3, 4)


SOFTMAX = {"name": "Categorical", "temperature": 1.0}


class Normalization(enum.Enum):
    """When the rows of an example are divided by the square root of its Fisher's Frobenius norm."""

    BEFORE = "before"
    """Before entries are dropped, by the norm of the whole Fisher, as in the paper (section 2.2, Preprocessing)."""
    AFTER = "after"
    """After entries are dropped, so that every sparsified Fisher has norm 1."""
    NONE = "none"
    """Never. Examples with large Fishers then dominate a decomposition."""


@dataclasses.dataclass(frozen=True)
class Schema:
    """Description of a set of PEFs, which decides whether two sets are equal or can be used together.

    Attributes:
        kind: low-rank or diagonal.
        representation: fields of the `Representation`, and its name under ``"name"``.
        normalization: when rows were divided by the square root of the norm.
        model: fingerprint of the model's parameters.
        examples: digest of the examples; "" if unknown.
        layout: names, shapes and offsets of the explained parameters.
        n_examples: n.
        n_classes: C.
        keep: K, non-zeros kept per example over all its rows; all if it equals rows times parameters.
        dtype: dtype of the stored values.
        precision: precision of the matrix products in forward and backward passes.
        output: fields of the output family, and its name under ``"name"``.
        constants: digest of the constants of the model's function; None if unknown.
        function: logits of a fixed input; None if unknown.
        version: version of the schema.
        code_version: version of the package that wrote the PEFs.
    """

    kind: FisherKind
    representation: dict[str, Any]
    normalization: str
    model: str
    examples: str
    layout: ParameterLayout
    n_examples: int
    n_classes: int
    keep: int
    dtype: str = "float32"
    precision: str = "highest"
    output: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(SOFTMAX))
    constants: str | None = None
    function: list[float] | None = None
    version: int = SCHEMA_VERSION
    code_version: str = ""

    def to_json(self) -> dict[str, Any]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | {"kind": self.kind.value, "layout": self.layout.to_json()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Schema":
        """Read a schema of this or an older version, converted to this version.

        Raises:
            ValueError: the schema is damaged.
        """
        try:
            if fields["version"] == 1:
                fields = fields | {"output": dict(SOFTMAX), "version": 2}
            if fields["version"] == 2:
                sketch = {"sketch": None} if fields["representation"]["name"] == "LowRank" else {}
                fields = fields | {"representation": fields["representation"] | sketch, "version": 3}
            if fields["version"] == 3:
                fields = fields | {"version": 4}
            layout = ParameterLayout.from_json(fields["layout"])
            schema = cls(**fields | {"kind": FisherKind(fields["kind"]), "layout": layout})
            schema._check()
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(f"the schema is damaged ({error!r}); copy the files again from where they came") from error
        return schema

    def _check(self) -> None:
        """Raise ValueError if a field has the wrong type."""
        texts = (self.normalization, self.model, self.examples, self.dtype, self.precision, self.code_version)
        wholes = (self.n_examples, self.n_classes, self.keep, self.version)
        named = (self.representation, self.output)
        expected = {
            "a text": all(isinstance(text, str) for text in texts),
            "a whole number": all(type(number) is int and 0 <= number < 2**63 for number in wholes),
            "a choice with its name": all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in named),
            "a normalization": self.normalization in [kind.value for kind in Normalization],
            "constants": isinstance(self.constants, str | None),
            "a function's logits": isinstance(self.function, list | None),
            "a dtype": self.dtype in ("float32", "bfloat16", "float16"),
            "parameters": bool(self.layout.parameters),
        }
        for what, holds in expected.items():
            if not holds:
                raise ValueError(f"expected {what}")

    @property
    def identity(self) -> Identity:
        """Identity, compared part by part by `check_same`."""
        named = ("constants", "function", "output", "normalization", "representation", "keep", "dtype", "precision")
        return {name: getattr(self, name) for name in (*named, "examples", "n_examples", "n_classes")} | {
            "parameters": self.model or None,
            "layout": self.layout.to_json(),
            "kind": self.kind.value,
        }
