"""Agent `claude-code`: the real Claude Code program, one session per brief, in the sandbox it is given. The engine calls it through `ports/agent.py`.

It speaks to the program through claude-agent-sdk over `Sandbox.start`. It opens no network, holds no key and decides nothing about the
result: the report is what the program claims.
"""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, ResultMessage

from claudecluster.agents.claude_cli import SandboxTransport, argv, bundled, environment
from claudecluster.agents.claude_ear import AUTH_HINT, Ear
from claudecluster.agents.watch import Watch, whichever_first
from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.model.errors import ClusterError, Unavailable
from claudecluster.model.evidence import Outcome, Report
from claudecluster.model.place import Command
from claudecluster.ports.agent import Brief, Hear, Heard
from claudecluster.ports.sandbox import Sandbox

REFUSALS = 2  # answers "wrong key" after which we stop; the program itself would try for three minutes
UNKNOWN_SESSION = "No conversation found"
USED_SESSION = "already in use"


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
        self._idle_timeout = idle_timeout
        self._starts = asyncio.Semaphore(starts or os.cpu_count() or 1)
        self._env = dict(env or {})
        self._clock = clock or SystemClock()

    @property
    def name(self) -> str:
        """The name it is chosen by."""
        return "claude-code"

    async def check(self) -> None:
        """Raise Unavailable if the program is not there."""
        if not os.access(self.cli, os.X_OK):
            hint = "reinstall claude-agent-sdk from a wheel, which carries the program, or name another one"
            raise Unavailable(f"Claude Code is not at {self.cli}", hint=hint)

    async def run(self, brief: Brief, sandbox: Sandbox, hear: Hear) -> Report:
        """Carry out the brief in the session it names. Safe to call again with `resumed` after a crash of ours, at any point."""
        text, why = brief.text, ""
        for resume in (brief.resumed, not brief.resumed):
            command = Command(argv(str(self.cli), brief, resume=resume), environment(brief, sandbox.socket, self._env), stdin=True)
            try:
                return await self._sit(command, replace(brief, text=text), sandbox, hear)
            except _OtherWayError as other:
                why = str(other)
                if resume and brief.task.prompt not in text:  # a new session has not heard its order
                    text = f"{brief.task.prompt}\n\n{text}"
                hear(Heard("notice", f"session {brief.session} {'begins anew' if resume else 'goes on'}: {why}"))
        raise Unavailable(f"Claude Code can neither start nor resume session {brief.session}: {why}")

    async def _sit(self, command: Command, brief: Brief, sandbox: Sandbox, hear: Hear) -> Report:
        ear = Ear(hear, work=sandbox.work, session=brief.session)
        async with contextlib.AsyncExitStack() as starting:
            await starting.enter_async_context(self._starts)
            sitting = _Sitting(ear, Watch(self._clock, idle=self._idle_timeout, limit=brief.task.timeout), self._idle_timeout)
            alarm = await whichever_first(sitting.talk(command, brief.text, sandbox, starting), sitting.watch.alarm())
        if alarm is not None and ear.result is None:
            return _stopped(ear, alarm, brief, self._idle_timeout)
        return sitting.report(self._clock.now())


@dataclass(slots=True)
class _Sitting:
    """One run of the program."""

    ear: Ear
    watch: Watch
    idle: float
    words: str = ""
    exit_code: int | None = None

    async def talk(self, command: Command, text: str, sandbox: Sandbox, starting: contextlib.AsyncExitStack) -> None:
        async with sandbox.start(command) as process:
            transport = SandboxTransport(process, self.watch.heard)
            client = ClaudeSDKClient(ClaudeAgentOptions(verbatim_prompts=True), transport)
            try:
                await client.connect()
                await starting.aclose()
                await client.query(text)
                await self._listen(client, transport)
            except ClusterError:
                raise
            except Exception as error:  # noqa: BLE001 - the SDK raises bare Exceptions; none of them is the agent's failure
                self.words = str(error)
            finally:
                await client.disconnect()
            self.words = transport.last_words or self.words
            self.exit_code = transport.exit.code if transport.exit else None

    async def _listen(self, client: ClaudeSDKClient, transport: SandboxTransport) -> None:
        async for message in client.receive_messages():
            self.ear.listen(message)
            self.watch.idle = self.ear.patience(self.idle)
            if isinstance(message, ResultMessage):
                await transport.end_input()  # it writes its session down, and ends
            if self.ear.refused >= REFUSALS:
                return

    def report(self, now: float) -> Report:
        """Return what came of it. Raises Unavailable, _OtherWayError."""
        result = self.ear.result
        said = "; ".join((result.errors or ()) if result else ()) + self.words
        if UNKNOWN_SESSION in said or (USED_SESSION in said and result is None):
            raise _OtherWayError(said.strip().splitlines()[-1])
        if result is not None:
            return self.ear.report(now)
        if self.ear.refused:
            raise Unavailable("the model refused our credentials", hint=AUTH_HINT)
        last = (self.words.splitlines() or ["it said nothing"])[-1]
        hint = "the program is not visible inside the sandbox" if self.exit_code == 127 else ""
        raise Unavailable(f"Claude Code ended before its result (exit code {self.exit_code}): {last}", hint=hint)


class _OtherWayError(Exception):
    """The session exists where it was to be started, or does not where it was to be resumed."""


def _stopped(ear: Ear, outcome: Outcome, brief: Brief, idle: float) -> Report:
    limit = f"it said nothing for {idle:.0f} s" if outcome is Outcome.STALLED else f"the task's {brief.task.timeout:.0f} s are over"
    return ear.ended(outcome, f"Claude Code was stopped: {limit}")
