"""A YAML or JSON text as plain data that remembers its lines. Called by `taskfile.py`; knows nothing of tasks.

Uses libyaml where PyYAML has it: 10,000 tasks parse in well under a second.
"""

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import yaml

from claudecluster.model.errors import Refused

LARGEST = 64 * 1024 * 1024
TEXT = "tag:yaml.org,2002:str"
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Once(Loader):  # type: ignore[misc]
    """A safe loader for which a key said twice is an error, as it is in no YAML library by default."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        said = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in said:
                raise yaml.constructor.ConstructorError(None, None, f"key `{key.value}` is given twice", key.start_mark)
            if key.tag != TEXT and key.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"key `{key.value}` must be text: put it in quotes", key.start_mark)
            said.add(key.value)
        return cast("dict[Any, Any]", super().construct_mapping(node, deep=deep))


@dataclass(frozen=True, slots=True)
class Document:
    """Plain data, and a way back to the lines it came from."""

    name: str
    data: Any
    root: yaml.Node | None

    def place(self, path: Sequence[str | int]) -> str:
        """Return `name line N` for a path into the data, as deep as it leads."""
        node = self.root
        if node is None:
            return self.name
        line = node.start_mark.line
        for step in path:
            found = _child(node, step)
            if found is None:
                break
            line, node = found
        return f"{self.name} line {line + 1}"


def read(name: str, raw: bytes) -> Document:
    """Parse a file's bytes. Raises Refused with the line for anything that is not clean YAML or JSON."""
    if len(raw) > LARGEST:
        raise Refused(f"{name} is larger than {LARGEST // 1024**2} MiB", hint="split the work into several runs")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Refused(f"{name} line {line}: not UTF-8 text", hint="save the file as UTF-8") from None
    with _uncollected():
        return _json(name, text) if name.endswith(".json") else _yaml(name, text)


@contextmanager
def _uncollected() -> Iterator[None]:
    # Nothing made here is garbage, and looking for some takes three quarters of the time for a large file.
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _yaml(name: str, text: str) -> Document:
    try:
        loader = _Once(text)
        try:
            root = loader.get_single_node()
            return Document(name, None if root is None else loader.construct_document(root), root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name} line {mark.line + 1}" if mark else name
        why = " ".join(part for part in (error.context, error.problem) if part)
        raise Refused(f"{where}: {_one_line(why)}", hint=_hint(why)) from None
    except yaml.YAMLError as error:
        raise Refused(f"{name}: {_one_line(str(error))}", hint="the file must be YAML text without control characters") from None
    except (ValueError, RecursionError, OverflowError) as error:
        raise Refused(f"{name}: {_one_line(str(error))}", hint="put the value in quotes, or nest less deeply") from None


def _json(name: str, text: str) -> Document:
    try:
        data = json.loads(text, object_pairs_hook=_pairs) if text.strip() else None
    except json.JSONDecodeError as error:
        raise Refused(f"{name} line {error.lineno}: {error.msg}", hint="the file ends in .json, so it must be JSON") from None
    except (KeyError, RecursionError) as error:
        why = f"key `{error.args[0]}` is given twice" if isinstance(error, KeyError) else "nested too deeply"
        raise Refused(f"{name}: {why}", hint="write it once") from None
    try:
        root = yaml.compose(text, Loader=Loader)  # JSON is YAML enough to find lines in
    except yaml.YAMLError:
        root = None
    return Document(name, data, root)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise KeyError(key)
        found[key] = value
    return found


def _child(node: yaml.Node, step: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        item = node.value[step]
        return item.start_mark.line, item
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == step:
                return key.start_mark.line, value
    return None


def _hint(why: str) -> str:
    if "given twice" in why:
        return "keep one of the two"
    if "could not determine a constructor" in why:
        return "YAML tags (`!name`) are not used in task files"
    if "\\t" in why or "tab" in why:
        return "indent with spaces, not tabs"
    return "check indentation, colons and quotes around that line"


def _one_line(text: str) -> str:
    return " ".join(text.split())
