"""Agent `claude-code`: the real Claude Code program, one session per brief, in the sandbox it is given. The engine calls it through `ports/agent.py`.

It speaks to the program through claude-agent-sdk over `Sandbox.start`. It opens no network, holds no key and decides nothing about the
result: the report is what the program claims.
"""

import asyncio
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

from claudecluster.agents.claude_cli import argv, bundled, environment
from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.model.errors import Unavailable
from claudecluster.model.evidence import Report
from claudecluster.model.place import Command
from claudecluster.ports.agent import Brief, Hear, Heard
from claudecluster.ports.sandbox import Sandbox


@dataclass(frozen=True, slots=True)
class Terms:
    """What all sessions of a ClaudeCode share: seconds of silence allowed, and how many may be starting."""

    clock: Clock
    idle: float
    starts: asyncio.Semaphore


class OtherWayError(Exception):
    """The session exists where it was to be started, or does not where it was to be resumed."""


class Sit(Protocol):
    """What `claude_session.py` does."""

    async def __call__(self, command: Command, brief: Brief, sandbox: Sandbox, hear: Hear, terms: Terms) -> Report:
        """Run the program once. Raises OtherWayError, Unavailable, SandboxLost."""
        ...


class ClaudeCode:
    """Runs Claude Code; a retry goes on in the same session. `cli`: the program (default: the one in the SDK's wheel), seen at that same path inside sandboxes.

    `idle_timeout`: seconds without a word after which a session counts as stalled. `starts`: how many programs may be starting at once
    (default: the number of cores; running ones are not limited). `env` reaches every session; a brief's own variables win.
    """

    def __init__(
        self,
        *,
        cli: Path | None = None,
        idle_timeout: float = 900.0,
        starts: int | None = None,
        env: Mapping[str, str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.cli = cli or bundled()
        self._terms = Terms(clock or SystemClock(), idle_timeout, asyncio.Semaphore(starts or os.cpu_count() or 1))
        self._env = dict(env or {})

    @property
    def name(self) -> str:
        """The name it is chosen by."""
        return "claude-code"

    async def check(self) -> None:
        """Raise Unavailable if the program is not there."""
        if not os.access(self.cli, os.X_OK):
            hint = "reinstall claude-agent-sdk from a wheel, which carries the program, or name another one"
            raise Unavailable(f"Claude Code is not at {self.cli}", hint=hint)
        await _loaded()

    async def run(self, brief: Brief, sandbox: Sandbox, hear: Hear) -> Report:
        """Carry out the brief in the session it names. Safe to call again with `resumed` after a crash of ours, at any point."""
        sit, text, why = await _loaded(), brief.text, ""
        for resume in (brief.resumed, not brief.resumed):
            command = Command(argv(str(self.cli), brief, resume=resume), environment(brief, sandbox.socket, self._env), stdin=True)
            try:
                return await sit(command, replace(brief, text=text), sandbox, hear, self._terms)
            except OtherWayError as other:
                why = str(other)
                if resume and brief.task.prompt not in text:  # a new session has not heard its order
                    text = f"{brief.task.prompt}\n\n{text}"
                hear(Heard("notice", f"session {brief.session} {'begins anew' if resume else 'goes on'}: {why}"))
        raise Unavailable(f"Claude Code can neither start nor resume session {brief.session}: {why}")


async def _loaded() -> Sit:
    """Return the module's function, off the event loop at first: the SDK takes half a second to load."""
    module = await asyncio.to_thread(importlib.import_module, "claudecluster.agents.claude_session")
    return cast("Sit", module.sit)
