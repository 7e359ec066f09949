"""What a set of PEFs is of, and how it was made: compared on open, before anything is read or resumed."""

import dataclasses
import enum
from typing import Any

from npeff_jax._parameters import ParameterLayout

SCHEMA_VERSION = 3
"""Version 1 did not say what the logits mean: they were those of a softmax. Version 2 knew no range finder."""

READABLE_VERSIONS = (1, 2, 3)


SOFTMAX = {"name": "Categorical", "temperature": 1.0}


class Kind(enum.Enum):
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
        examples: digest of the examples.
        layout: names, shapes and offsets of the explained parameters.
        n_examples: n.
        n_classes: C.
        keep: K, non-zeros kept for one example over all its rows; every one if it equals rows times parameters.
        dtype: of the stored values.
        precision: of the matrix products behind the gradients.
        output: what the logits mean: the fields of the output family, and its name under ``"name"``.
        version: of this schema.
        code_version: of the package that wrote them.
    """

    kind: Kind
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
        return cls(**fields | {"kind": Kind(fields["kind"]), "layout": ParameterLayout.from_json(fields["layout"])})

    def differences(self, other: "Schema", ignore: tuple[str, ...] = ("code_version",)) -> list[str]:
        """The names of the fields in which two schemas differ."""
        names = [f.name for f in dataclasses.fields(self) if f.name not in ignore]
        return [name for name in names if getattr(self, name) != getattr(other, name)]
