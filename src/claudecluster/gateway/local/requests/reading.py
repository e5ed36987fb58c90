"""Read an Anthropic Messages request, as Claude Code sends it, into a `Conversation` for one local model.

What is Anthropic's own (cache marks, thinking, context management, effort, metadata, billing header, placeholder tools) goes; every word
that was meant for a model stays. Messages with role `system` before the first answer join the system text (they are the set-up);
later ones stay where they are, as a reminder inside the user's turn, so that a server's prompt cache keeps its prefix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from claudecluster.gateway.local.requests import blocks
from claudecluster.gateway.local.requests.blocks import Block
from claudecluster.gateway.local.requests.conversation import Call, Conversation, Line, Picture, Target, Tool, Wishes
from claudecluster.gateway.local.requests.schemas import plain
from claudecluster.model.errors import Refused

BILLING = "x-anthropic-billing-header:"
PLACEHOLDER = "DeferredToolPlaceholder"
NO_RESULT = "(There is no result: the call was interrupted.)"
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def read(body: Mapping[str, Any], target: Target) -> Conversation:
    """Return all the request says to a model. Raises Refused if `messages` is not a list of messages."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise Refused("messages: a list of messages is required")
    tools, absent = _tools(body, messages, target)
    wishes = _wishes(body)
    script = _Script(target)
    for block in blocks.blocks_of(body.get("system")):
        script.system(_without_billing(blocks.words(block)))
    for message in messages:
        script.hear(str(message.get("role", "user")), blocks.blocks_of(message.get("content")))
    if absent:
        script.system(f"These tools are not available in this session: {', '.join(absent)}.")
    lines = script.end(_urge(wishes, tools))
    if wishes.choice == "none":
        tools = ()
    elif wishes.choice.startswith("tool:"):
        tools = tuple(tool for tool in tools if tool.name == wishes.choice[5:]) or tools
    return Conversation(lines, tools, wishes)


def _without_billing(text: str) -> str:
    if not text.startswith(BILLING):
        return text
    return text.partition("\n")[2].lstrip("\n")


def _urge(wishes: Wishes, tools: Sequence[Tool]) -> str:
    """Return in words what servers without `tool_choice` would miss."""
    if not tools:
        return ""
    said = []
    if wishes.choice == "any":
        said.append("You must answer with a call of one of the tools.")
    elif wishes.choice.startswith("tool:"):
        said.append(f"You must answer with a call of the tool {wishes.choice[5:]}.")
    if not wishes.parallel and wishes.choice != "none":
        said.append("Call at most one tool in this turn.")
    return " ".join(said)


def _wishes(body: Mapping[str, Any]) -> Wishes:
    choice = body.get("tool_choice")
    chosen = choice if isinstance(choice, Mapping) else {}
    kind = str(chosen.get("type") or "auto")
    thinking, output = body.get("thinking"), body.get("output_config")
    settings = output if isinstance(output, Mapping) else {}
    shape = settings.get("format") or body.get("output_format")
    schema = shape.get("schema") if isinstance(shape, Mapping) and shape.get("type") == "json_schema" else None
    stop = body.get("stop_sequences")
    return Wishes(
        max_tokens=_whole(body.get("max_tokens")) or 4096,
        temperature=_number(body.get("temperature")),
        top_p=_number(body.get("top_p")),
        top_k=_whole(body.get("top_k")),
        stop=tuple(str(item) for item in stop if item) if isinstance(stop, list) else (),
        choice=f"tool:{chosen.get('name', '')}" if kind == "tool" else kind if kind in {"any", "none"} else "auto",
        parallel=not chosen.get("disable_parallel_tool_use", False),
        thinking=isinstance(thinking, Mapping) and thinking.get("type") in {"enabled", "adaptive"},
        effort=EFFORTS.get(str(settings.get("effort")), ""),
        schema=schema if isinstance(schema, Mapping) else None,
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _tools(body: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], target: Target) -> tuple[tuple[Tool, ...], list[str]]:
    """Return the tools this model may see, and the names of those that only Anthropic's servers run."""
    offered = [tool for tool in body.get("tools") or () if isinstance(tool, Mapping) and tool.get("name")]
    loaded = _loaded(messages)
    searchable = any("toolsearch" in str(tool["name"]).lower().replace("_", "") for tool in offered)
    tools, absent = [], []
    for tool in offered:
        name = str(tool["name"])
        if name == PLACEHOLDER or name in target.hidden:
            continue
        if "input_schema" not in tool and tool.get("type") not in {None, "custom"}:
            absent.append(name)
        elif not tool.get("defer_loading") or name in loaded or not searchable:
            # A deferred tool is hidden until a search has named it; without a search tool nothing could ever name it.
            tools.append(Tool(name, str(tool.get("description") or ""), plain(tool.get("input_schema"))))
    return tuple(tools), absent


def _loaded(messages: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names of tools that a search has found or that have been called."""
    found: set[str] = set()
    for message in messages:
        for block in blocks.blocks_of(message.get("content")):
            if block.get("type") == "tool_use":
                found.add(str(block.get("name")))
            inner = blocks.blocks_of(block.get("content")) if block.get("type") == "tool_result" else [block]
            found.update(str(item.get("tool_name")) for item in inner if item.get("type") == "tool_reference")
    return found


@dataclass(slots=True)
class _Script:
    """Messages in, lines out. Between two answers come first the results of the calls, then what the user said."""

    target: Target
    lines: list[Line] = field(default_factory=list)
    _system: list[str] = field(default_factory=list)
    _open: dict[str, str] = field(default_factory=dict)
    _results: list[Line] = field(default_factory=list)
    _said: list[str] = field(default_factory=list)
    _seen: list[Picture] = field(default_factory=list)

    def system(self, text: str) -> None:
        """Add to the system text."""
        if text:
            self._system.append(text)

    def hear(self, role: str, content: list[Block]) -> None:
        """Take one message."""
        if role == "assistant":
            self._turn()
            self._answer(content)
        elif role == "system":
            said = blocks.joined(content)
            if any(line.role == "assistant" for line in self.lines):
                self._said += [f"<system-reminder>\n{said}\n</system-reminder>"] if said else []
            else:
                self.system(said)
        else:
            for block in content:
                self._user(block)

    def end(self, urge: str) -> tuple[Line, ...]:
        """Return all lines; `urge` is said last."""
        if urge:
            self._said.append(f"<system-reminder>\n{urge}\n</system-reminder>")
        self._turn()
        head = [Line("system", "\n\n".join(self._system))] if self._system else []
        return (*head, *self.lines)

    def _answer(self, content: list[Block]) -> None:
        calls = []
        for block in content:
            if block.get("type") == "tool_use":
                arguments = block.get("input")
                calls.append(
                    Call(str(block.get("id", "")), str(block.get("name", "")), arguments if isinstance(arguments, Mapping) else {})
                )
        text = blocks.joined([block for block in content if block.get("type") != "tool_use"])
        if not text and not calls:
            return
        last = self.lines[-1] if self.lines else None
        if last is not None and last.role == "assistant":
            self.lines.pop()
            text = "\n\n".join(part for part in (last.text, text) if part)
            calls = [*last.calls, *calls]
        self.lines.append(Line("assistant", text, calls=tuple(calls)))
        self._open = {call.id: call.name for call in calls}

    def _user(self, block: Block) -> None:
        if block.get("type") != "tool_result":
            shown = blocks.picture(block) if self.target.vision else None
            if shown is not None:
                self._seen.append(shown)
            elif said := blocks.words(block):
                self._said.append(said)
            return
        call = str(block.get("tool_use_id", ""))
        name = self._open.pop(call, None)
        content = blocks.blocks_of(block.get("content"))
        text = self._result(content, name or call)
        if name is None:  # its call was compacted away: servers refuse a result without one
            self._said.append(f"[Result of an earlier tool call {call}]\n{text}")
        else:
            self._results.append(Line("tool", text or "(no output)", call_id=call, tool=name, failed=bool(block.get("is_error"))))

    def _result(self, content: list[Block], source: str) -> str:
        """Return the result's words; its images go along with the user's turn, where every server takes them."""
        shown = list(blocks.pictures(content)) if self.target.vision else []
        if not shown:
            return blocks.joined(content)
        self._seen += shown
        self._said.append(f"[{len(shown)} image(s) of the result of {source} are attached to this message.]")
        return blocks.joined([block for block in content if blocks.picture(block) is None]) or "(the image is attached to the next message)"

    def _turn(self) -> None:
        """Close what stands between two answers."""
        missing = [Line("tool", NO_RESULT, call_id=call, tool=name, failed=True) for call, name in self._open.items()]
        self.lines += self._results + missing
        if self._said or self._seen:
            self.lines.append(Line("user", "\n\n".join(self._said), tuple(self._seen)))
        self._open, self._results, self._said, self._seen = {}, [], [], []
