"""Make a model's tool call fit the tools on offer: the name, the shape of the arguments, the types of their values."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from claudecluster.gateway.local.replies.deltas import Called
from claudecluster.gateway.local.replies.repair import mended, strict
from claudecluster.gateway.local.requests.conversation import Tool

WRAPPERS = ("parameters", "arguments", "input", "args", "kwargs", "params")
NEAR = 0.75  # difflib's ratio from which two names are taken for one
LEGAL = re.compile(r"[^a-zA-Z0-9_-]")
EMPTY = frozenset({"", "{}", "null", "None", '""'})


@dataclass(frozen=True, slots=True)
class Settled:
    """A call that can be made."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unusable:
    """A call nobody can make sense of; `text` is what the model wrote."""

    name: str
    text: str


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@dataclass(slots=True)
class Catalogue:
    """The tools on offer, found under the names small models give them."""

    tools: Sequence[Tool]
    _by_name: dict[str, Tool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_name = {tool.name: tool for tool in self.tools}

    def settle(self, called: Called) -> Settled | Unusable:
        """Return the call as its tool wants it. A name nothing resembles is kept: the client says best what is missing."""
        name = self.named(called.name)
        arguments = self._parsed(called.arguments, whole=not called.cut)
        if arguments is None or not name:
            raw = called.arguments if isinstance(called.arguments, str) else json.dumps(dict(called.arguments))
            return Unusable(name or "tool", called.written or raw)
        tool = self._by_name.get(name)
        return Settled(name, fitted(arguments, tool.schema) if tool is not None else arguments)

    def named(self, name: str) -> str:
        """Return the offered tool's name that is meant, else the name made legal."""
        if name in self._by_name:
            return name
        bare = _bare(name.rsplit(".", 1)[-1].rsplit(":", 1)[-1])
        if not bare:
            return ""
        known = {_bare(offered): offered for offered in self._by_name}
        if bare in known:
            return known[bare]
        around = [offered for short, offered in known.items() if len(short) >= 4 and (bare.startswith(short) or bare.endswith(short))]
        if len(around) == 1:  # write_file, run_bash
            return around[0]
        near = difflib.get_close_matches(bare, known, n=1, cutoff=NEAR)
        return known[near[0]] if near else LEGAL.sub("_", name)[:128]

    def knows(self, name: str) -> bool:
        """Return whether some offered tool is meant by that name."""
        return self.named(name) in self._by_name

    @staticmethod
    def _parsed(arguments: Mapping[str, Any] | str, *, whole: bool) -> dict[str, Any] | None:
        if isinstance(arguments, Mapping):
            return dict(arguments)
        if arguments.strip() in EMPTY and whole:
            return {}
        value = mended(arguments) if whole else strict(arguments)  # half a call mended would be another call
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        return value if isinstance(value, dict) else None


def fitted(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments unwrapped, with the schema's own keys and types. What does not fit is left for the tool to refuse."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        return dict(arguments)
    inner = _unwrapped(arguments, properties)
    bare = {_bare(name): name for name in properties}
    out: dict[str, Any] = {}
    for key, value in inner.items():
        own = key if key in properties else bare.get(_bare(key), key)
        out[own if own not in inner or own == key else key] = value
    return {key: _typed(value, properties.get(key)) for key, value in out.items()}


def _unwrapped(arguments: Mapping[str, Any], properties: Mapping[str, Any]) -> Mapping[str, Any]:
    if any(key in properties for key in arguments):
        return arguments
    for wrapper in WRAPPERS:
        if wrapper in arguments and set(arguments) <= {wrapper, "name", "type", "id"}:
            value = arguments[wrapper]
            inner = mended(value) if isinstance(value, str) else value
            if isinstance(inner, dict):
                return inner
    return arguments


def _typed(value: object, schema: object) -> object:
    """Return the value in the type asked for, where that loses nothing."""
    kinds = schema.get("type") if isinstance(schema, Mapping) else None
    wanted = {kinds} if isinstance(kinds, str) else set(kinds) if isinstance(kinds, list) else set()
    if isinstance(value, str):
        return value if not wanted or "string" in wanted else _unquoted(value, wanted)
    if wanted != {"string"} or value is None:
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(value, ensure_ascii=False, indent=2)


def _unquoted(value: str, wanted: set[Any]) -> object:
    if wanted & {"object", "array"}:
        parsed = mended(value)
        if (isinstance(parsed, dict) and "object" in wanted) or (isinstance(parsed, list) and "array" in wanted):
            return parsed
    if wanted & {"integer", "number", "boolean", "null"}:
        try:
            found = json.loads(value.strip().lower())
        except ValueError:
            return value
        if not isinstance(found, str | list | dict):
            return found
    return value
