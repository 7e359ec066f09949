"""Conversion of frozen dataclasses to JSON and back, with every field checked, and their JSON Schema."""

import dataclasses
import json
import math
import types
import typing
from typing import Any


def dumps(document: Any) -> str:
    """Serialise a document of plain types as compact JSON."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def to_plain(value: Any) -> Any:
    """Convert to JSON types: dataclasses to dicts, tuples to lists, floats to 4 significant digits, NaN to None."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {valid_text(str(key)): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        if all(type(entry) is float for entry in value):  # most of a document: without a call per number
            return [float(f"{entry:.4g}") if math.isfinite(entry) else None for entry in value]
        return [entry if type(entry) is int else to_plain(entry) for entry in value]
    if isinstance(value, str):
        return valid_text(value)
    if value is None or isinstance(value, bool | int):
        return value
    if hasattr(value, "item"):
        return to_plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return str(value)


def valid_text(text: str) -> str:
    """Return the text with "�" in place of lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def from_plain(kind: Any, value: Any, where: str) -> Any:
    """Convert ``value`` to an object of type ``kind``; the inverse of `to_plain`.

    Raises:
        ValueError: If a field is missing, unknown, or of another type. The message starts with ``where``.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else from_plain(_not_none(arguments), value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        if not isinstance(value, dict) or set(value) != set(hints):
            got = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise ValueError(f"{where} has {got}; expected the fields {sorted(hints)}")
        return kind(**{name: from_plain(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} is {type(value).__name__}; expected a list")
        kinds = [arguments[0]] * len(value) if arguments[1:] == (Ellipsis,) else list(arguments)
        if len(value) != len(kinds):
            raise ValueError(f"{where} has {len(value)} entries; expected {len(kinds)}")
        return tuple(from_plain(one, entry, f"{where}[{i}]") for i, (one, entry) in enumerate(zip(kinds, value)))
    if kind is Any:
        return value
    if kind is float and type(value) is int:
        return float(value)
    expected = origin or kind
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise ValueError(f"{where} is {type(value).__name__}; expected {expected.__name__}")
    return value


def json_schema_of(kind: type) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a dataclass's document."""
    definitions: dict[str, Any] = {}
    reference = _schema(kind, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **reference, "$defs": definitions}


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if kind.__name__ not in definitions:
            hints = typing.get_type_hints(kind)
            properties = {name: _schema(hint, definitions) for name, hint in hints.items()}
            closed = {"required": list(hints), "additionalProperties": False}
            definitions[kind.__name__] = {"type": "object", "properties": properties, **closed}
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_schema(_not_none(arguments), definitions), {"type": "null"}]}
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is tuple:
        entries = [_schema(one, definitions) for one in arguments]
        return {"type": "array", "prefixItems": entries, "minItems": len(entries), "maxItems": len(entries)}
    names = {float: "number", int: "integer", str: "string", bool: "boolean", dict: "object"}
    return {} if kind is Any else {"type": names[origin or kind]}


def _not_none(arguments: tuple[Any, ...]) -> Any:
    return next(one for one in arguments if one is not type(None))
