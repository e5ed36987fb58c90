"""Agents for tests of the engine: a well-behaved one, and one for each way of misbehaving. None of them needs a model.

Each is an `Agent`; `name` is what tasks call it by. What they share: their report claims whatever they were told to claim.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from claudecluster.model.errors import SandboxLost, Unavailable
from claudecluster.model.evidence import Outcome, Report
from claudecluster.model.place import Command
from claudecluster.ports.agent import Agent, Brief, Hear, Heard
from claudecluster.ports.sandbox import Sandbox

CLAIM = "All done, and every test passes."


@dataclass(slots=True)
class _Double:
    """What all of them have. `briefs` is what they were asked, in order."""

    name: str
    continues: bool = True
    needs_model: bool = False
    briefs: list[Brief] = field(default_factory=list)

    async def check(self) -> None:
        """Return: they work anywhere."""

    def _claim(self, brief: Brief, text: str = CLAIM) -> Report:
        return Report(Outcome.FINISHED, text=text, session=brief.session, turns=1)


@dataclass(slots=True)
class Diligent(_Double):
    """Writes files. `work` maps a task's id to the files of its first, second, … attempt; the last one's are written ever after."""

    name: str = "diligent"
    work: Mapping[str, Sequence[Mapping[str, str]]] = field(default_factory=dict)

    async def run(self, brief: Brief, sandbox: Sandbox, hear: Hear) -> Report:
        """Write the attempt's files and finish."""
        self.briefs.append(brief)
        tries = self.work.get(brief.task.id, ({},))
        for path, text in tries[min(brief.attempt, len(tries)) - 1].items():
            hear(Heard("tool", f"Write {path}"))
            await sandbox.write(path, text.encode())
        return self._claim(brief)


@dataclass(slots=True)
class Idle(_Double):
    """Claims success and changes nothing."""

    name: str = "idle"

    async def run(self, brief: Brief, sandbox: Sandbox, hear: Hear) -> Report:
        """Do nothing, loudly."""
        self.briefs.append(brief)
        hear(Heard("text", f"I work on {brief.task.id} in {sandbox.work}."))
        return self._claim(brief)


@dataclass(slots=True)
class Endless(_Double):
    """Never returns; only cancelling ends it. `started` is set once it runs."""

    name: str = "endless"
    started: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, brief: Brief, sandbox: Sandbox, hear: Hear) -> Report:
        """Wait for ever, with a process in the sandbox."""
        self.briefs.append(brief)
        async with sandbox.start(Command(("sh", "-c", "echo working; while :; do sleep 1; done"))) as process:
            async for line in process.lines():
                hear(Heard("output", line.data.decode(errors="replace")))
                self.started.set()
        return self._claim(brief)


@dataclass(slots=True)
class Crashing(_Double):
    """Writes half a file, then dies of an error nobody expects."""

    name: str = "crashing"

    async def run(self, brief: Brief, sandbox: Sandbox, hear: Hear) -> Report:
        """Raise RuntimeError."""
        self.briefs.append(brief)
        hear(Heard("text", "I begin."))
        await sandbox.write("half.txt", b"half of wh")
        raise RuntimeError("the agent crashed")


@dataclass(slots=True)
class Daemonic(_Double):
    """Leaves processes behind that hide in sessions of their own and go on writing to `beat`, then claims success."""

    name: str = "daemonic"

    async def run(self, brief: Brief, sandbox: Sandbox, hear: Hear) -> Report:
        """Start the daemons and return."""
        self.briefs.append(brief)
        loop = "while :; do date +%s%N > beat; sleep 0.1; done"
        line = f"for n in 1 2 3; do (setsid nohup sh -c '{loop}' >/dev/null 2>&1 &); done; echo made > made.txt"
        async with sandbox.start(Command(("sh", "-c", line))) as process:
            ended = await process.wait()
        hear(Heard("tool", f"Bash {line}", {"exit_code": ended.code}))
        return self._claim(brief)


@dataclass(slots=True)
class Hostile(_Double):
    """Turns the tree's own Git against us: hooks, a filter, an fsmonitor, each of which would leave `pwned` behind."""

    name: str = "hostile"

    async def run(self, brief: Brief, sandbox: Sandbox, hear: Hear) -> Report:
        """Set the traps and return."""
        self.briefs.append(brief)
        trap = f"touch {sandbox.work}/pwned"
        await sandbox.write("made.txt", b"made\n")
        await sandbox.write(".gitattributes", b"*.txt filter=trap diff=trap\n")
        settings = (
            ("core.fsmonitor", trap),
            ("filter.trap.clean", f"{trap}; cat"),
            ("core.hooksPath", f"{sandbox.work}/.hooks"),
            ("diff.trap.command", trap),
        )
        for hook in ("pre-commit", "post-commit", "post-checkout", "reference-transaction"):
            await sandbox.write(f".hooks/{hook}", f"#!/bin/sh\n{trap}\n".encode())
        lines = [f"git config {key} '{value}'" for key, value in settings] + ["chmod +x .hooks/*"]
        async with sandbox.start(Command(("sh", "-c", "; ".join(lines)))) as process:
            await process.wait()
        hear(Heard("text", "Nothing to see here."))
        return self._claim(brief)


@dataclass(slots=True)
class Flaky(_Double):
    """Cannot work the first `times` times it is asked for a task, then hands over to `inner`. No fault of the work: Unavailable, or SandboxLost."""

    inner: Agent = field(default_factory=Idle)
    name: str = "flaky"
    times: int = 1
    lost: bool = False
    seen: Counter[str] = field(default_factory=Counter)

    async def run(self, brief: Brief, sandbox: Sandbox, hear: Hear) -> Report:
        """Raise, or work."""
        self.briefs.append(brief)
        self.seen[brief.task.id] += 1
        if self.seen[brief.task.id] > self.times:
            return await self.inner.run(brief, sandbox, hear)
        if self.lost:
            raise SandboxLost("the sandbox went away")
        raise Unavailable("the model is overloaded", delay=0.0)
