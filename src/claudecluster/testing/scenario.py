"""What a scripted model says: the scenario file, checked when it is read. `anthropic.py` plays it; this file knows no HTTP.

A scenario is YAML or JSON:

    pace: {first: 0.4, chunk: 0.02}        # seconds before an answer's first byte, and between its pieces of text
    headers: {anthropic-ratelimit-unified-status: allowed}      # on every answer
    faults: [{status: 529}]                # the first requests of all get these, in order, one each
    otherwise: "I have nothing to do."     # the answer where no session matches
    sessions:
      - match: "fix the mean"              # regular expression, searched for in the conversation's first prompt; the first match wins
        closing: "All done."               # the answer after the last turn
        turns:
          - thinking: "Where is it?"       # said before the text, signed
            text: "Let me look."
            tools: [{name: Read, input: {file_path: "{cwd}/src/x.py"}}]
          - delay: 1.5                     # think for longer than `pace.first`
            tools: [{name: Bash, input: {command: "python -m pytest -q"}}]
            faults: [{cut: after-text}, {status: 429, headers: {retry-after: "1"}}]     # once per conversation, then the turn itself
          - text: "Fixed."                 # no tools: the turn ends here (stop_reason end_turn)
          - when: "failed"                 # played only where the newest user message matches; else `closing` is said
            text: "Sorry. Again."
            usage: {input_tokens: 10, output_tokens: 5, cache_read_input_tokens: 2000}
            stop_reason: max_tokens

`{cwd}` in tool inputs and texts is the session's working directory as its own requests name it.

A fault is one of
    {status: 429, headers: {…}, body: {…}}      an HTTP error (the body is Anthropic's own shape unless given)
    {cut: POINT, clean: false}                  the connection dies there (`clean`: the body just ends, without message_stop)
    {sse_error: overloaded_error, at: POINT}    an error event inside a started stream
    {hang: 30, at: POINT, pings: true}          silence (or pings) for so many seconds, then on as usual
    {garbage: html|json|empty}                  a 200 whose body is no answer
each with `times: 3` to strike three requests instead of one.
POINT is before (no byte sent), start (after message_start), mid-text, after-text, mid-tool or after-tool. A point that the turn
does not have (no text, no tool) is taken as the nearest later one; the last is the end of all blocks, before message_delta.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from claudecluster.model.errors import NotFound, Refused

Point = Literal["before", "start", "mid-text", "after-text", "mid-tool", "after-tool"]
FAULTS = ("status", "cut", "sse_error", "hang", "garbage")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Pace(_Strict):
    """How fast answers come, in seconds; a seeded jitter of ±30 % is put on each."""

    first: float = Field(default=0.0, ge=0)
    chunk: float = Field(default=0.0, ge=0)


class Tool(_Strict):
    """One tool call."""

    name: str
    input: dict[str, Any] = Field(default_factory=dict)


class Tokens(_Strict):
    """The usage an answer claims."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class Fault(_Strict):
    """One thing that goes wrong, `times` times. Exactly one kind is named."""

    status: int | None = Field(default=None, ge=400, le=599)
    headers: dict[str, str] = Field(default_factory=dict)
    body: dict[str, Any] | str | None = None
    cut: Point | None = None
    clean: bool = False
    sse_error: str | None = None
    message: str = ""
    hang: float | None = Field(default=None, ge=0)
    pings: bool = False
    at: Point = "start"
    times: int = Field(default=1, ge=1)
    garbage: Literal["html", "json", "empty"] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Fault":
        named = [kind for kind in FAULTS if getattr(self, kind) is not None]
        if len(named) != 1:
            raise ValueError(f"a fault names exactly one of {', '.join(FAULTS)}; this one names {', '.join(named) or 'none'}")
        return self

    @property
    def point(self) -> Point:
        """Where in the stream it strikes."""
        return self.cut or self.at


def due(faults: Sequence[Fault], struck: int) -> Fault | None:
    """Return the fault that strikes after `struck` earlier ones; None once all have."""
    for fault in faults:
        if struck < fault.times:
            return fault
        struck -= fault.times
    return None


class Turn(_Strict):
    """One answer of the model."""

    text: str = ""
    thinking: str = ""
    tools: tuple[Tool, ...] = ()
    when: str = ""
    delay: float | None = Field(default=None, ge=0)
    chunk: float | None = Field(default=None, ge=0)
    usage: Tokens | None = None
    stop_reason: str = ""
    headers: dict[str, str] = Field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

    @field_validator("when")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _regex(value)


class Session(_Strict):
    """What one conversation is answered, turn by turn."""

    match: str
    turns: tuple[Turn, ...]
    closing: str = "Everything asked for is done."

    @field_validator("match")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _regex(value)


class Scenario(_Strict):
    """All that a scripted model knows."""

    sessions: tuple[Session, ...] = ()
    pace: Pace = Pace()
    headers: dict[str, str] = Field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    otherwise: str = "This is a scripted model; nothing in its scenario matches that request."

    def session(self, prompt: str) -> tuple[int, Session | None]:
        """Return the first session whose `match` is found in the prompt, with its index; (-1, None) without one."""
        for index, session in enumerate(self.sessions):
            if re.search(session.match, prompt, re.DOTALL):
                return index, session
        return -1, None


def parse(text: str, *, origin: str = "scenario") -> Scenario:
    """Read a scenario from YAML or JSON text. Raises Refused, naming the place of the first mistakes."""
    try:
        data = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise Refused(f"{origin} is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        first = "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()[:3])
        raise Refused(f"{origin}: {first}") from error


def load(path: Path) -> Scenario:
    """Read a scenario file. Raises NotFound, Refused."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFound(f"no scenario at {path}: {error.strerror}") from error
    return parse(text, origin=str(path))


def _regex(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return value
