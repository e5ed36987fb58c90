"""Tool schemas as local servers take them: references resolved, no boolean schemas, plain words only.

Ollama parses schemas into fixed Go types and answers 400 to the whole request where one does not fit (api/types.go, ToolFunction).
"""

from collections.abc import Mapping
from typing import Any

DEPTH = 12  # recursive schemas are cut off here
DROPPED = frozenset({"$schema", "$id", "$comment", "$defs", "definitions", "$ref", "const", "oneOf", "allOf", "cache_control"})
LISTS = frozenset({"anyOf", "prefixItems"})
NAMED = frozenset({"properties", "patternProperties"})
TYPED: Mapping[str, tuple[type, ...]] = {"required": (list,), "enum": (list,), "type": (str, list), "properties": (dict,), "anyOf": (list,)}


def plain(schema: object) -> dict[str, Any]:
    """Return an object schema with the same meaning in the plainest words."""
    root = schema if isinstance(schema, Mapping) else {}
    cleaned = _plain(root, root, 0)
    properties = cleaned.get("properties")
    known = properties if isinstance(properties, dict) else {}
    required = cleaned.get("required")
    cleaned.update(type="object", properties=known)
    cleaned["required"] = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    return cleaned


def _plain(schema: object, root: Mapping[str, Any], depth: int) -> dict[str, Any]:
    if not isinstance(schema, Mapping) or depth > DEPTH:
        return {}
    merged = _merged(schema, root, depth)
    out: dict[str, Any] = {}
    for key, value in merged.items():
        if key in DROPPED:
            continue
        out[key] = _value(key, value, root, depth)
    for key, kinds in TYPED.items():
        if key in out and not isinstance(out[key], kinds):
            del out[key]
    if "const" in merged:
        out["enum"] = [merged["const"]]
    if isinstance(merged.get("oneOf"), list):
        out["anyOf"] = [_plain(item, root, depth + 1) for item in merged["oneOf"]]
    if "description" in out and not isinstance(out["description"], str):
        out["description"] = str(out["description"])
    return out


def _value(key: str, value: object, root: Mapping[str, Any], depth: int) -> object:
    if key in NAMED and isinstance(value, Mapping):
        return {str(name): _plain(item, root, depth + 1) for name, item in value.items()}
    if key in LISTS and isinstance(value, list):
        return [_plain(item, root, depth + 1) for item in value]
    if key == "items":
        return _plain(value, root, depth + 1)
    if key == "additionalProperties" and isinstance(value, Mapping):
        return _plain(value, root, depth + 1)
    return value


def _merged(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Return the schema with its reference and its `allOf` parts laid under it."""
    merged: dict[str, Any] = {}
    if isinstance(schema.get("$ref"), str):
        merged.update(_merged(_resolved(schema["$ref"], root), root, depth + 1) if depth < DEPTH else {})
    parts = schema.get("allOf")
    for part in parts if isinstance(parts, list) and depth < DEPTH else []:
        if isinstance(part, Mapping):
            _lay(merged, _merged(part, root, depth + 1))
    _lay(merged, schema)
    return merged


def _lay(under: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if key == "properties" and isinstance(value, Mapping) and isinstance(under.get(key), Mapping):
            under[key] = {**under[key], **value}
        elif key == "required" and isinstance(value, list) and isinstance(under.get(key), list):
            under[key] = [*under[key], *value]
        else:
            under[key] = value


def _resolved(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    here: object = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if not name:
            continue
        here = here.get(name) if isinstance(here, Mapping) else None
    return here if isinstance(here, Mapping) else {}
