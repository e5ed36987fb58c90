"""Find what small models write into their text though it belongs elsewhere: tool calls and thoughts.

Understood: `<tool_call>` (Hermes, Qwen), `<function=...>` (Qwen coder), `<arg_key>` (GLM), `[TOOL_CALLS]` (Mistral), a bare or fenced JSON
call as the whole answer (Llama), and `<think>` at the start. What only looks like one of these comes out as the text it is. Text is held
back only while it may still become a call, and what comes out does not depend on how the stream was cut.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from claudecluster.gateway.local.replies.calls import Catalogue
from claudecluster.gateway.local.replies.deltas import Called, Delta, Said, Thought
from claudecluster.gateway.local.replies.repair import mended

CLOSED_BY = {"<tool_call>": "</tool_call>", "<function_call>": "</function_call>", "<function=": "</function>", "[TOOL_CALLS]": ""}
THINK = {"<think>": "</think>", "<thinking>": "</thinking>"}
KEYS = ("name", "function", "tool", "tool_name", "arguments", "parameters", "type")
INPUTS = ("arguments", "parameters", "input", "args")
HEAD = re.compile(r"(?:```\w*\s*)?\[?\s*\{\s*\"(\w*)(\"?)")
GLIMPSE = re.compile(r"`{1,3}\w*\s*\[?\s*\{?\s*\"?|\[\s*\{?\s*\"?|\{\s*\"?")
FUNCTION = re.compile(r"<function=([^>\s]+)\s*>(.*?)(?:</function>|$)", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>\s]+)\s*>\n?(.*?)\n?</parameter>", re.DOTALL)
GLM = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


@dataclass(slots=True)
class Prose:
    """Text in, deltas out. Without tools on offer nothing is taken for a call."""

    catalogue: Catalogue
    _held: str = ""
    _state: Literal["start", "text", "call", "think", "json"] = "start"
    _opener: str = ""
    _before: str = ""

    def feed(self, text: str) -> list[Delta]:
        """Return what is certain by now."""
        self._held += text
        found: list[Delta] = []
        while (step := self._step()) is not None:
            found += step
        return found

    def close(self, *, cut: bool = False) -> list[Delta]:
        """Return the rest, at the end of the stream; `cut` says that the model ran out of room."""
        rest, self._held = self._held, ""
        state, self._state = self._state, "start"
        if state == "think":
            return [Thought()]
        if state == "call":
            return self._call(rest, cut=cut)
        if state == "json":
            return self._bare(rest, cut=cut)
        return [Said(rest)] if rest else []

    def _step(self) -> list[Delta] | None:
        """Go one state further; None when more text is needed."""
        match self._state:
            case "start":
                return self._start()
            case "text":
                return self._text()
            case "think":
                return self._thinking()
            case "call":
                return self._closing()
            case "json":
                return None if self._hopeful() else self._plain()

    def _plain(self) -> list[Delta]:
        self._state = "text"
        return []

    def _start(self) -> list[Delta] | None:
        lead = self._held.lstrip()
        for opener in THINK:
            if lead.startswith(opener):
                self._state, self._opener, self._held = "think", opener, lead.removeprefix(opener)
                return [Thought()]
        if any(opener.startswith(lead) for opener in THINK):
            return None
        if self.catalogue.tools and lead[0] in "{[`" and not lead.startswith("[TOOL"):
            self._state = "json"
            return []
        return self._plain()

    def _thinking(self) -> list[Delta] | None:
        _, closer, rest = self._held.partition(THINK[self._opener])
        if not closer:
            return None
        self._state, self._held = "start", rest.lstrip()
        return []

    def _hopeful(self) -> bool:
        """Return whether the answer so far may be a call in JSON."""
        lead = self._held.lstrip()
        head = HEAD.match(lead)
        if head is None:
            return GLIMPSE.fullmatch(lead) is not None or any(opener.startswith(lead) for opener in CLOSED_BY if lead.startswith("["))
        key, ended = head.groups()
        return key in KEYS if ended else head.end() == len(lead) and any(known.startswith(key) for known in KEYS)

    def _text(self) -> list[Delta] | None:
        place, opener = self._opening()
        if opener:
            said, self._held = self._held[:place], self._held[place + len(opener) :]
            self._state, self._opener = "call", opener
            return [Said(said)] if said else []
        keep = self._may_open() if self.catalogue.tools else 0
        said, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._before = said[-1:] or self._before
        return [Said(said)] if said else None

    def _opening(self) -> tuple[int, str]:
        """Return where the first call begins and with what; a quoted one is talk about calls."""
        best, found = len(self._held), ""
        for opener in CLOSED_BY if self.catalogue.tools else ():
            place = self._held.find(opener)
            while 0 <= place < best:
                if (self._held[place - 1] if place else self._before) not in {"`", '"', "'"}:
                    best, found = place, opener
                    break
                place = self._held.find(opener, place + 1)
        return best, found

    def _may_open(self) -> int:
        longest = max(map(len, CLOSED_BY)) - 1
        return max(
            (
                size
                for size in range(1, min(longest, len(self._held)) + 1)
                if any(opener.startswith(self._held[-size:]) for opener in CLOSED_BY if len(opener) > size)
            ),
            default=0,
        )

    def _closing(self) -> list[Delta] | None:
        closer = CLOSED_BY[self._opener]
        place = self._held.find(closer) if closer else -1
        if place < 0:
            return None
        inner, self._held = self._held[:place], self._held[place + len(closer) :]
        self._state, self._before = "text", ">"
        return self._call(inner, closer)

    def _call(self, inner: str, closer: str = "", *, cut: bool = False) -> list[Delta]:
        written = f"{self._opener}{inner}{closer}"
        calls = _calls(f"{self._opener}{inner}" if self._opener == "<function=" else inner) if not cut else []
        if calls:
            return [Called(name, arguments, written) for name, arguments in calls]
        return [Called("", inner, written, cut=cut)] if _serious(inner) else [Said(written)]

    def _bare(self, text: str, *, cut: bool) -> list[Delta]:
        calls = _calls(text) if not cut else []
        if calls and all(self.catalogue.knows(name) for name, _ in calls):
            return [Called(name, arguments, text) for name, arguments in calls]
        return [Said(text)]


def _serious(inner: str) -> bool:
    """Return whether this was meant as a call rather than spoken about."""
    return any(mark in inner for mark in ("{", "<parameter=", "<arg_key>"))


def _calls(text: str) -> list[tuple[str, Mapping[str, Any] | str]]:
    """Return the calls written there in any of the known ways; none if one of them cannot be read."""
    functions = FUNCTION.findall(text)
    if functions:
        return [(name, dict(PARAMETER.findall(inner))) for name, inner in functions]
    arguments = GLM.findall(text)
    if arguments:
        return [(text.partition("<arg_key>")[0].strip(), {key.strip(): value for key, value in arguments})]
    value = mended(text)
    items = value if isinstance(value, list) else [value]
    found = [_named(item) for item in items]
    return [call for call in found if call is not None] if all(found) else []


def _named(item: object) -> tuple[str, Mapping[str, Any] | str] | None:
    if not isinstance(item, Mapping):
        return None
    inner = item.get("function")
    if isinstance(inner, Mapping):
        item = inner
    name = next((item[key] for key in ("name", "tool", "tool_name", "function") if isinstance(item.get(key), str)), "")
    arguments: Mapping[str, Any] | str = next((item[key] for key in INPUTS if isinstance(item.get(key), Mapping | str)), {})
    return (name, arguments) if name else None
