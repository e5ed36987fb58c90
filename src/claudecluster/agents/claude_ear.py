"""Listens to Claude Code: turns its messages into `Heard`s, and its result into a report or an error. Pure; `claude_code.py` feeds it.

The truth of a run is the result message's `is_error` with `api_error_status`, never its `subtype` (an API failure is
`subtype: "success"`) and never the exit code alone. Passing causes are raised as Unavailable: they are not the agent's failure.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    Message,
    RateLimitEvent,
    ResultMessage,
    SystemMessage,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

from claudecluster.model.errors import Unavailable
from claudecluster.model.evidence import Outcome, Report
from claudecluster.ports.agent import Hear, Heard

SYNTHETIC = "<synthetic>"
ENDING = 5.0  # seconds a program may take to end after its result
ERRANDS = 60.0  # the same, while shells run in the background: a test may still end, a server never will
LONGEST = 2000  # characters of one heard text
SUBJECTS = ("file_path", "notebook_path", "command", "pattern", "path", "url", "query", "description", "prompt", "skill")
AUTH = frozenset({401, 403})
PASSING = frozenset({408, 409, 425, 429, *range(500, 600)})  # 529 is "overloaded"
PASSING_ERRORS = frozenset({"rate_limit", "server_error", "unknown"})  # the message's `error` field where no status came
AUTH_HINT = "check the API key the gateway uses (ANTHROPIC_API_KEY) and what it may do"
BILLING_HINT = "check the credit balance and spending limit of the account behind the API key"


class Ear:
    """Hears one session's messages; `now` gives the time limits are counted from, in seconds since the epoch."""

    def __init__(self, hear: Hear, *, work: str, session: str) -> None:
        self._hear = hear
        self._work = work
        self._session = session
        self._error = ""
        self._resets_at: float | None = None
        self._refused = 0
        self._wanted = ""
        self._background: frozenset[str] = frozenset()
        self._done = False
        self.model = ""
        self.result: ResultMessage | None = None

    @property
    def refused(self) -> int:
        """How many requests in a row were refused for their credentials. The program would go on for minutes; its owner need not."""
        return self._refused

    def patience(self, usual: float) -> float:
        """Return how many seconds of silence are fine now, where `usual` are while it works.

        A result ends a turn. Sub-agents that still run, and shells in the background, may start another one when they end.
        """
        if not self._done or self._background - {"local_bash"}:
            return usual
        return min(usual, ERRANDS if self._background else ENDING)

    def listen(self, message: Message) -> None:
        """Take one message in."""
        self._done = isinstance(message, ResultMessage)
        match message:
            case AssistantMessage():
                self._assistant(message)
            case UserMessage():
                self._user(message)
            case ResultMessage():
                self._final(message)
            case RateLimitEvent():
                info = message.rate_limit_info
                self._resets_at = info.resets_at if info.status == "rejected" else self._resets_at
                self._say("notice", f"rate limit: {info.status}", dict(info.raw))
            case SystemMessage():
                self._system(message)
            case _:
                pass  # newer programs say more than we know

    def report(self, now: float) -> Report:
        """Return the report that the result message stands for. Raises Unavailable for a passing cause; call only with a `result`."""
        result = self.result
        if result is None:
            raise Unavailable("Claude Code ended without a result")
        if not result.is_error:
            return self._report(Outcome.FINISHED, text=result.result or "")
        why = "; ".join(result.errors or ()) or (result.result or "") or result.subtype
        self._raise_if_passing(result.api_error_status, why, now, api=result.subtype == "success")
        return self._report(Outcome.FAILED, error=why)

    def ended(self, outcome: Outcome, error: str) -> Report:
        """Return the report of a session that was stopped from outside."""
        return self._report(outcome, error=error)

    def _raise_if_passing(self, status: int | None, why: str, now: float, *, api: bool) -> None:
        delay = max(0.0, self._resets_at - now) if self._resets_at is not None else None
        if status in AUTH or self._error == "authentication_failed":
            raise Unavailable(f"the model refused our credentials: {why}", hint=AUTH_HINT)
        if status == 402 or self._error == "billing_error":
            raise Unavailable(f"the model's account cannot pay: {why}", hint=BILLING_HINT)
        if status in PASSING or (api and status is None and self._error in PASSING_ERRORS):
            raise Unavailable(f"the model cannot be reached: {why}", delay=delay)

    def _report(self, outcome: Outcome, *, text: str = "", error: str = "") -> Report:
        turns = self.result.num_turns if self.result else 0
        return Report(outcome, text=text, error=error, session=self._session, model=self.model, turns=turns)

    def _assistant(self, message: AssistantMessage) -> None:
        if message.model != SYNTHETIC and not message.parent_tool_use_id:
            if (before := self.model or self._wanted) and not _same(before, message.model):
                self._say("notice", f"{message.model} answers in place of {before}", {"model": message.model, "before": before})
            self.model = message.model
            self._error, self._refused = "", 0
        self._error = message.error or self._error
        inside = {"parent": message.parent_tool_use_id} if message.parent_tool_use_id else {}
        for block in message.content:
            match block:
                case TextBlock(text=text) if text.strip():
                    self._say("error" if message.error else "text", text.strip(), inside)
                case ToolUseBlock():
                    self._say("tool", self._line(block), {"id": block.id, "name": block.name, **inside})
                case _:
                    pass

    def _user(self, message: UserMessage) -> None:
        if isinstance(message.content, str):
            return
        for block in message.content:
            if isinstance(block, ToolResultBlock):
                self._say("output", _plain(block.content), {"id": block.tool_use_id, "error": bool(block.is_error)})

    def _system(self, message: SystemMessage) -> None:
        data = message.data
        match message.subtype:
            case "api_retry":
                status = data.get("error_status")
                self._refused = self._refused + 1 if status in AUTH else 0
                seconds = round(float(data.get("retry_delay_ms") or 0) / 1000, 1)
                self._say("notice", f"the model answered {status or data.get('error') or 'nothing'}; next try in {seconds} s", _facts(data))
            case "model_fallback":
                self._say(
                    "notice",
                    f"model {data.get('original_model')} is out ({data.get('trigger')}); {data.get('fallback_model')} goes on",
                    _facts(data),
                )
            case "init":
                self._wanted = str(data.get("model") or "").partition("[")[0]
            case "background_tasks_changed":
                self._background = frozenset(str(task.get("task_type")) for task in data.get("tasks", ()))
            case "compact_boundary":
                self._say("notice", "the conversation was compacted", _facts(data))
            case _:
                pass

    def _final(self, message: ResultMessage) -> None:
        self.result = message
        text = message.result or "; ".join(message.errors or ()) or message.subtype
        data = {
            "is_error": message.is_error,
            "turns": message.num_turns,
            "duration_ms": message.duration_ms,
            "status": message.api_error_status,
        }
        self._say("result", text, data)

    def _line(self, block: ToolUseBlock) -> str:
        subject = next((str(block.input[key]) for key in SUBJECTS if block.input.get(key)), "")
        if subject.startswith("/"):
            path = PurePosixPath(subject)
            subject = str(path.relative_to(self._work)) if path.is_relative_to(self._work) else subject
        first, *rest = subject.strip().splitlines() or [""]
        shown = first[:120] + (" …" if rest or len(first) > 120 else "")
        return f"{block.name} {shown}".strip()

    def _say(self, kind: str, text: str, data: Mapping[str, object] | None = None) -> None:
        shown = text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text)} characters)"
        self._hear(Heard(kind, shown, data or {}))


def _same(one: str, other: str) -> bool:
    """Whether two names are of one model: one may carry a date."""
    return one.startswith(other) or other.startswith(one)


def _plain(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", f"[{part.get('type')}]")) for part in content)
    return content or ""


def _facts(data: Mapping[str, Any]) -> dict[str, object]:
    return {key: value for key, value in data.items() if key not in {"type", "subtype", "uuid", "session_id"}}
