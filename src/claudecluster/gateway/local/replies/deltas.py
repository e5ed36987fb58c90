"""The neutral nouns of a reply as it comes in. Readers make them, `writing` turns them into Anthropic's events."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """The model is thinking. What it thinks stays with it: only Anthropic can sign thoughts."""


@dataclass(frozen=True, slots=True)
class Called:
    """A whole tool call. `arguments` are as the server gave them: parsed, or the raw text."""

    name: str
    arguments: Mapping[str, Any] | str
    written: str = ""  # how it stood in the text, where it was no call on the wire
    cut: bool = False  # the server ran out of room while writing it


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens as the server counted them; None where it did not say."""

    prompt: int | None = None
    answer: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The model stopped: of itself, or because it had no room left (`length`), or at one of the stop sequences."""

    length: bool = False
    stop: str = ""


@dataclass(frozen=True, slots=True)
class Broke:
    """The server gave up in the middle of a 200."""

    message: str


Delta = Said | Thought | Called | Counted | Ended | Broke
