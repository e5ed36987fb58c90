"""One run of the Claude Code program through the SDK: say what to do, listen until it is done or has to be stopped, and judge what it was.

`claude_code.py` loads this by name, for the SDK is heavy.
"""

import contextlib
from dataclasses import dataclass

from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, ClaudeSDKError, ResultMessage

from claudecluster.agents.claude_code import OtherWayError, Terms
from claudecluster.agents.claude_ear import AUTH_HINT, Ear
from claudecluster.agents.claude_transport import SandboxTransport
from claudecluster.agents.watch import Watch, whichever_first
from claudecluster.model.errors import Unavailable
from claudecluster.model.evidence import Outcome, Report
from claudecluster.model.place import Command
from claudecluster.ports.agent import Brief, Hear
from claudecluster.ports.sandbox import Sandbox

REFUSALS = 2  # answers "wrong key" after which we stop; the program itself would try for three minutes
UNKNOWN_SESSION = "No conversation found"
USED_SESSION = "already in use"


async def sit(command: Command, brief: Brief, sandbox: Sandbox, hear: Hear, terms: Terms) -> Report:
    """Run the program to its result, its silence or its time. Raises OtherWayError, Unavailable, SandboxLost."""
    ear = Ear(hear, work=sandbox.work, session=brief.session)
    async with contextlib.AsyncExitStack() as starting:
        await starting.enter_async_context(terms.starts)
        sitting = _Sitting(ear, Watch(terms.clock, idle=terms.idle, limit=brief.task.timeout), terms.idle)
        alarm = await whichever_first(sitting.talk(command, brief.text, sandbox, starting), sitting.watch.alarm())
    if alarm is not None and ear.result is None:
        return _stopped(ear, alarm, brief, terms.idle)
    return sitting.report(terms.clock.now())


@dataclass(slots=True)
class _Sitting:
    """One run, and what is known of its end."""

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
                if await self._connected(client):
                    await starting.aclose()
                    await client.query(text)
                    await self._listen(client, transport)
            except ClaudeSDKError as error:
                self.words = str(error)
            finally:
                await client.disconnect()
            if transport.lost is not None:
                raise transport.lost
            self.words = transport.last_words or self.words
            self.exit_code = transport.exit.code if transport.exit else None

    async def _connected(self, client: ClaudeSDKClient) -> bool:
        try:
            await client.connect()
        except Exception as error:  # noqa: BLE001 - where the program refuses, the SDK raises a bare Exception
            self.words = str(error)
            return False
        return True

    async def _listen(self, client: ClaudeSDKClient, transport: SandboxTransport) -> None:
        async for message in client.receive_messages():
            self.ear.listen(message)
            self.watch.idle = self.ear.patience(self.idle)
            if isinstance(message, ResultMessage):
                await transport.end_input()  # it writes its session down, and ends
            if self.ear.refused >= REFUSALS:
                return

    def report(self, now: float) -> Report:
        """Return what came of it. Raises Unavailable, OtherWayError."""
        result = self.ear.result
        said = "; ".join((result.errors or ()) if result else ()) + self.words
        if UNKNOWN_SESSION in said or (USED_SESSION in said and result is None):
            raise OtherWayError(said.strip().splitlines()[-1])
        if result is not None:
            return self.ear.report(now)
        if self.ear.refused:
            raise Unavailable("the model refused our credentials", hint=AUTH_HINT)
        last = (self.words.splitlines() or ["it said nothing"])[-1]
        hint = "the program is not visible inside the sandbox" if self.exit_code == 127 else ""
        raise Unavailable(f"Claude Code ended before its result (exit code {self.exit_code}): {last}", hint=hint)


def _stopped(ear: Ear, outcome: Outcome, brief: Brief, idle: float) -> Report:
    limit = f"it said nothing for {idle:.0f} s" if outcome is Outcome.STALLED else f"the task's {brief.task.timeout:.0f} s are over"
    return ear.ended(outcome, f"Claude Code was stopped: {limit}")
