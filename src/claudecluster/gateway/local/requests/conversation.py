"""The neutral nouns between Anthropic's wire and a local server's: a conversation, and the model it is meant for.

`reading` makes them, the `to_*` modules write them out. Nothing here knows a wire.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Target:
    """A local model as measured. `context` in tokens (prompt and answer together); `max_output` 0 means: what is left of it."""

    model: str
    context: int = 32_768
    max_output: int = 0
    tools: bool = True
    vision: bool = False
    thinking: bool = False
    levels: bool = False  # thinks by level (gpt-oss), not by yes and no
    hidden: frozenset[str] = frozenset()  # tools never offered to this model, to keep its prompt small


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as base64."""

    media_type: str
    data: str


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call of an earlier turn."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One message. `call_id`, `tool` and `failed` are for role `tool`, `calls` for role `assistant`."""

    role: Literal["system", "user", "assistant", "tool"]
    text: str = ""
    pictures: tuple[Picture, ...] = ()
    calls: tuple[Call, ...] = ()
    call_id: str = ""
    tool: str = ""
    failed: bool = False

    def said(self) -> str:
        """Return the text for wires that cannot say `failed` in a field of its own."""
        return f"Error: {self.text}" if self.failed else self.text


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool on offer; `schema` is JSON Schema with nothing in it that local servers trip over."""

    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wishes:
    """How to answer. `choice` is `auto`, `any`, `none` or `tool:<name>`; None means the server's own default."""

    max_tokens: int = 4096
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    choice: str = "auto"
    parallel: bool = True
    thinking: bool = False
    effort: str = ""
    schema: Mapping[str, Any] | None = None  # the answer must be JSON of this shape


@dataclass(frozen=True, slots=True)
class Conversation:
    """All a model is told: at most one system line, and that one first; a tool line only after the assistant line that called it."""

    lines: tuple[Line, ...]
    tools: tuple[Tool, ...] = ()
    wishes: Wishes = field(default_factory=Wishes)
