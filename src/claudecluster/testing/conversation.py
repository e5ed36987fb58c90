"""Where a conversation stands, read from the conversation alone.

A request carries its whole history, so the scripted model keeps no state of its own: killed clients, resumed sessions and any number
of parallel ones get the same answers. `anthropic.py` calls this; the scenario itself is in `scenario.py`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from claudecluster.testing.scenario import Scenario, Session, Tool, Turn

Message = Mapping[str, Any]

TOOL_ID = re.compile(r"toolu_s(?P<turn>\d{3})t(?P<attempt>\d)(?P<repair>r?)_")
MARK = re.compile(r"\(scripted turn (\d+)\)")
CWD = re.compile(r"(?:Primary working directory|Working directory|cwd): *([^\n<]+)", re.IGNORECASE)
UNREAD = re.compile(r"has not been read yet|modified since read|read it (?:first|again)", re.IGNORECASE)
LOST = re.compile(r"\[(?:Tool call|Request) interrupted")  # what Claude Code puts where a killed session has no result
REPAIRS, REPEATS = 3, 9


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request stands: which session (-1: none), which turn of it, and how often that turn was tried before."""

    session: int
    turn: int
    attempt: int = 0
    repair: bool = False

    def tool_id(self, salt: str, index: int) -> str:
        """Return a tool call's id, from which `place` finds its way back."""
        return f"toolu_s{self.turn:03d}t{self.attempt}{'r' if self.repair else ''}_{salt}{index}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say to a request."""

    place: Place
    turn: Turn
    final: bool = False


def answer(scenario: Scenario, body: Mapping[str, Any]) -> Answer:
    """Decide what a request is answered, from its body alone."""
    messages: Sequence[Message] = body.get("messages", ())
    if aside := _aside(body):
        return Answer(Place(-1, 0), Turn(text=aside))
    index, session = scenario.session(first_prompt(messages))
    if session is None:
        return Answer(Place(-1, 0), Turn(text=scenario.otherwise))
    directory = cwd(body)
    where = _History(session, messages, directory).place(index)
    if re.search(r"(?:detailed summary of|summary of) (?:the|our|this) conversation", newest := _newest_prompt(messages)):
        return Answer(Place(index, 0), Turn(text=f"<summary>Work is under way (scripted turn {where.turn}).</summary>"))
    if where.repair:
        unread = tuple(Tool(name="Read", input={"file_path": path}) for path in _unread(messages))
        return Answer(where, Turn(text="I read the file again first.", tools=unread))
    turn = session.turns[where.turn] if where.turn < len(session.turns) else None
    if turn is None or (turn.when and not re.search(turn.when, newest, re.DOTALL)):
        return Answer(where, Turn(text=session.closing), final=True)
    return Answer(where, fill(turn, directory))


def fill(turn: Turn, directory: str) -> Turn:
    """Put the working directory into a turn's `{cwd}`s."""
    tools = tuple(Tool(name=tool.name, input=_fill(tool.input, directory)) for tool in turn.tools)
    return turn.model_copy(update={"tools": tools, "text": _fill(turn.text, directory)})


def cwd(body: Mapping[str, Any]) -> str:
    """Return the working directory that the client's environment text names; `.` without one."""
    for text in _environment(body):
        if found := CWD.search(text):
            return found[1].strip()
    return "."


def first_prompt(messages: Sequence[Message]) -> str:
    """Return what the user first asked, without what the client put around it."""
    return next((text for text in map(_prompt, messages) if text), "")


def pairing_error(messages: Sequence[Message]) -> str:
    """Return why the API would refuse this history: each tool_use needs its tool_result in the next message. Empty: it would not."""
    for position, message in enumerate(messages):
        ids = [block["id"] for block in _blocks(message) if block.get("type") == "tool_use"] if message.get("role") == "assistant" else []
        following = next((later for later in messages[position + 1 :] if later.get("role") != "system"), {})
        results = {block.get("tool_use_id") for block in _blocks(following) if block.get("type") == "tool_result"}
        missing = [one for one in ids if one not in results]
        if missing:
            return (
                f"messages.{position}: `tool_use` ids were found without `tool_result` blocks immediately after: {', '.join(missing)}. "
                "Each `tool_use` block must have a corresponding `tool_result` block in the next message."
            )
    return ""


class _History:
    """What a conversation's messages say about how far its session has come."""

    def __init__(self, session: Session, messages: Sequence[Message], directory: str) -> None:
        self._session = session
        self._messages = messages
        self._directory = directory
        self._failures = _failures(messages)

    def place(self, index: int) -> Place:
        """Walk through the messages and return where they end."""
        here = Place(index, 0)
        for message in self._messages:
            if message.get("role") == "assistant":
                for block in _blocks(message):
                    here = self._after_text(here, block) if block.get("type") == "text" else self._after_tool(here, block)
            elif mark := MARK.search(_prompt(message)):  # all before it was compacted away
                here = Place(index, int(mark[1]))
        return here

    def _after_text(self, here: Place, block: Message) -> Place:
        turn = self._session.turns[here.turn] if here.turn < len(self._session.turns) else Turn()
        if turn.tools or not turn.text or _fill(turn.text, self._directory).strip() != str(block.get("text", "")).strip():
            return here
        return Place(here.session, here.turn + 1)

    def _after_tool(self, here: Place, block: Message) -> Place:
        found = TOOL_ID.match(str(block.get("id", "")))
        if found is None:
            return here
        turn, attempt = int(found["turn"]), int(found["attempt"])
        if found["repair"]:
            return Place(here.session, turn, attempt + 1)
        if here.turn == turn and (here.repair or here.attempt > attempt):
            return here  # another call of the same turn already asked for it to be repeated
        failure = self._failures.get(str(block.get("id")), "")
        if _path(block) and UNREAD.search(failure) and attempt < REPAIRS:
            return Place(here.session, turn, attempt, repair=True)
        if LOST.search(failure) and attempt < REPEATS:
            return Place(here.session, turn, attempt + 1)
        return Place(here.session, turn + 1)


def _failures(messages: Sequence[Message]) -> dict[str, str]:
    """Return the failed tool calls' results by id."""
    failed = (block for message in messages for block in _blocks(message) if block.get("type") == "tool_result" and block.get("is_error"))
    return {str(block.get("tool_use_id")): " ".join(_texts(block)) for block in failed}


def _unread(messages: Sequence[Message]) -> list[str]:
    """Return the newest file that a tool would not touch unread."""
    failures = _failures(messages)
    calls = [block for message in messages for block in _blocks(message) if block.get("type") == "tool_use"]
    return [path for call in calls if (path := _path(call)) and UNREAD.search(failures.get(str(call.get("id")), ""))][-1:]


def _path(call: Message) -> str:
    given = call.get("input")
    return str(given.get("file_path") or "") if isinstance(given, Mapping) else ""


def _aside(body: Mapping[str, Any]) -> str:
    """Return the answer to what a client asks beside its work (titles, quota probes); empty for real work."""
    if body.get("tools"):
        return ""
    if body.get("max_tokens") == 1:
        return "ok"
    system = " ".join(_texts({"content": body.get("system", "")}))
    if re.search(r"\btitle\b", system):
        return '{"title": "Scripted work", "branch": "scripted-work"}'
    return ""


def _newest_prompt(messages: Sequence[Message]) -> str:
    return next((text for text in map(_prompt, reversed(messages)) if text), "")


def _prompt(message: Message) -> str:
    if message.get("role") != "user":
        return ""
    return "\n".join(text for text in _texts(message) if not text.lstrip().startswith("<system-reminder>")).strip()


def _environment(body: Mapping[str, Any]) -> Iterator[str]:
    for message in body.get("messages", ()):
        if message.get("role") == "system":
            yield from _texts(message)
    yield from _texts({"content": body.get("system", "")})
    for message in body.get("messages", ()):
        yield from (text for text in _texts(message) if text.lstrip().startswith("<system-reminder>"))


def _blocks(message: Message) -> list[Message]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [block for block in content if isinstance(block, Mapping)] if isinstance(content, list) else []


def _texts(message: Message) -> list[str]:
    return [str(block.get("text", "")) for block in _blocks(message) if block.get("type") == "text"]


def _fill(value: Any, directory: str) -> Any:
    match value:
        case str():
            return value.replace("{cwd}", directory)
        case dict():
            return {key: _fill(item, directory) for key, item in value.items()}
        case list():
            return [_fill(item, directory) for item in value]
        case _:
            return value
