"""What a set of PEFs is of, and how it was made: compared on open, before anything is read or resumed."""

import dataclasses
import enum
from typing import Any

from npeff_jax._identity import Identity
from npeff_jax._parameters import ParameterLayout

SCHEMA_VERSION = 4
"""Version 1 did not say what the logits mean: they were those of a softmax. Version 2 knew no range finder. Version 3
told models apart by their parameters alone, and in its arrays an absent chunk is zero."""

READABLE_VERSIONS = (1, 2, 3, 4)


SOFTMAX = {"name": "Categorical", "temperature": 1.0}


class FisherKind(enum.Enum):
    """The two flavours of NPEFF."""

    LOW_RANK = "low_rank"
    DIAGONAL = "diagonal"


@dataclasses.dataclass(frozen=True)
class Schema:
    """Everything that two sets of PEFs must share to be the same, or to be used together.

    Attributes:
        kind: the flavour.
        representation: the fields of the `LowRank`, `Diagonal` or `Sampled` that made them, and its name under
            ``"name"``.
        normalization: when rows were divided by the square root of the norm.
        model: fingerprint of the model's parameters.
        examples: digest of the examples; "" where they are not known.
        layout: names, shapes and offsets of the explained parameters.
        n_examples: n.
        n_classes: C.
        keep: K, non-zeros kept for one example over all its rows; every one if it equals rows times parameters.
        dtype: of the stored values.
        precision: of the matrix products behind the gradients.
        output: what the logits mean: the fields of the output family, and its name under ``"name"``.
        constants: digest of what the model's function holds besides its parameters, None where it is not known.
        function: logits of a fixed input, None where they are not known.
        version: of this schema.
        code_version: of the package that wrote them.
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
        """A schema of this or an older version, as of this version."""
        if fields["version"] == 1:
            fields = fields | {"output": dict(SOFTMAX), "version": 2}
        if fields["version"] == 2:
            sketch = {"sketch": None} if fields["representation"]["name"] == "LowRank" else {}
            fields = fields | {"representation": fields["representation"] | sketch, "version": 3}
        if fields["version"] == 3:
            fields = fields | {"version": 4}
        return cls(
            **fields | {"kind": FisherKind(fields["kind"]), "layout": ParameterLayout.from_json(fields["layout"])}
        )

    @property
    def identity(self) -> Identity:
        """What must agree for two things to belong together, part by part: see `check_same`."""
        named = ("constants", "function", "output", "normalization", "representation", "keep", "dtype", "precision")
        return {name: getattr(self, name) for name in (*named, "examples", "n_examples", "n_classes")} | {
            "parameters": self.model or None,
            "layout": self.layout.to_json(),
            "kind": self.kind.value,
        }
