"""Mend the JSON small models write for tool arguments, from the mildest cure to the strongest.

Text inside a string is never guessed: where a string was cut off, nothing is returned, for half a file must not be written.
"""

import ast
import json
import re
from typing import Any

import orjson
from json_repair import repair_json

FENCE = re.compile(r"^\s*```[\w-]*[ \t]*\n?(.*?)\n?\s*(?:```\s*)?$", re.DOTALL)
CLOSERS = {"{": "}", "[": "]"}
LENIENT = json.JSONDecoder(strict=False)  # takes raw line feeds and tabs inside strings


def mended(raw: str) -> dict[str, Any] | list[Any] | None:
    """Return the object or array that was meant, None if that cannot be told."""
    text = raw.strip()
    if text.startswith('"'):  # an object wrapped in a string
        inner = strict(text)
        text = inner.strip() if isinstance(inner, str) else text
    fenced = FENCE.match(text)
    if fenced is not None and text.startswith("```"):
        text = fenced.group(1).strip()
    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    if not starts:
        return None
    text = text[min(starts) :]
    for cure in (strict, _lenient, _balanced, _literal, _guessed):
        value = cure(text)
        if isinstance(value, dict | list):
            return value
    return None


def strict(text: str) -> object:
    """Return the value if it is JSON as it stands, else None."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _lenient(text: str) -> object:
    """Take the first value and leave what comes after it."""
    try:
        return LENIENT.raw_decode(text)[0]
    except ValueError:
        return None


def _balanced(text: str) -> object:
    """Drop commas before a closing bracket, close the brackets still open."""
    out: list[str] = []
    stack: list[str] = []
    quoted = escaped = False
    for mark in text:
        if quoted:
            quoted, escaped = (mark != '"' or escaped), (mark == "\\" and not escaped)
        elif mark == '"':
            quoted = True
        elif mark in CLOSERS:
            stack.append(CLOSERS[mark])
        elif mark in "}]":
            _drop_comma(out)
            if stack and stack[-1] == mark:
                stack.pop()
        out.append(mark)
    if quoted:
        return None
    _drop_comma(out)
    return _lenient("".join(out + stack[::-1]))


def _drop_comma(out: list[str]) -> None:
    place = len(out)
    while place and out[place - 1].isspace():
        place -= 1
    if place and out[place - 1] == ",":
        del out[place - 1]


def _literal(text: str) -> object:
    """Read it as Python: single quotes, True, None."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return None
    return value


def _guessed(text: str) -> object:
    """Leave unquoted keys, stray quotes and comments to a library; it would also close a cut string, so that is refused first."""
    if text.rstrip()[-1:] not in {"}", "]"}:
        return None
    value: object = repair_json(text, return_objects=True)
    return value or None
