"""Gates: the user's commands, run on a given tree in a fresh sandbox that nobody has touched.

A gate that ran and failed is data. One that could not run (no such program, a lost sandbox) has no exit code: that is
infrastructure, and says nothing about the work.
"""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from claudecluster.engine.parts import Parts
from claudecluster.model.errors import ClusterError, SandboxLost, Unavailable
from claudecluster.model.evidence import Evidence, Finding, Verdict
from claudecluster.model.order import Order
from claudecluster.model.place import Command, Exit, SandboxSpec, Stream
from claudecluster.model.run import GateRun
from claudecluster.model.task import Gate
from claudecluster.model.tree import Wanted, Workspace
from claudecluster.ports.sandbox import Process, Sandbox
from claudecluster.ports.workspace import Hub

TAIL = 16 * 1024  # bytes of a gate's output that are kept
CANNOT_RUN = (126, 127)  # the shell's codes for a program that cannot be executed or found
PLAIN = re.compile(r"[A-Za-z0-9_.+-]+\Z")


@dataclass(frozen=True, slots=True)
class Site:
    """Which tree to judge, and where: `at` on the frozen base, in a workspace and sandbox called `name`."""

    name: str
    base: str
    at: str
    layer: str


class Gates:
    """Runs gates and checks on trees."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def run(self, hub: Hub, order: Order, site: Site, gates: Sequence[Gate]) -> tuple[GateRun, ...]:
        """Run the commands one after another and stop at the first that does not pass. Raises Unavailable if no sandbox can be had."""
        commands = [gate for gate in gates if gate.run]
        if not commands:
            return ()
        done: list[GateRun] = []
        async with Place(self._parts, hub, order, site) as sandbox:
            for gate in commands:
                done.append(await self.command(sandbox, gate.name, gate.run, gate.timeout))
                if not done[-1].passed:
                    break
        return tuple(done)

    async def look(self, hub: Hub, order: Order, site: Site, evidence: Evidence, names: Sequence[str]) -> tuple[Finding, ...]:
        """Let the named checks look at the tree. One that breaks is `UNKNOWN`."""
        if not names:
            return ()
        found: list[Finding] = []
        async with Place(self._parts, hub, order, site) as sandbox:
            for name in names:
                try:
                    found.append(await self._parts.check(name).look(sandbox, evidence))
                except ClusterError as error:
                    found.append(Finding(name, Verdict.UNKNOWN, error.message))
        return tuple(found)

    async def missing(self, hub: Hub, order: Order, site: Site, gates: Sequence[Gate]) -> list[Gate]:
        """Return the gates whose program does not exist where gates run. Scripts of the repository are not looked for: a task may bring them."""
        words = {gate.name: gate.run.split()[0] for gate in gates if gate.run.split()}
        asked = sorted({word for word in words.values() if PLAIN.match(word)})
        if not asked:
            return []
        script = "; ".join(f"command -v {word} >/dev/null 2>&1 || echo {word}" for word in asked)
        async with (
            Place(self._parts, hub, order, site) as sandbox,
            sandbox.start(Command(("/bin/sh", "-c", script), timeout=60)) as process,
        ):
            absent = {line.data.decode() async for line in process.lines() if line.stream is Stream.OUT}
            await process.wait()
        return [gate for gate in gates if words.get(gate.name) in absent]

    async def command(self, sandbox: Sandbox, name: str, command: str, timeout: float) -> GateRun:
        """Run one shell command to its end."""
        began = self._parts.clock.monotonic()
        blank = GateRun(name, command, None, 0.0)
        try:
            async with sandbox.start(Command(("/bin/sh", "-c", command), timeout=timeout)) as process:
                output = await _tail(process)
                ended = await process.wait()
        except (SandboxLost, Unavailable) as error:
            return replace(blank, reason=error.message)
        took = round(self._parts.clock.monotonic() - began, 3)
        return _judge(replace(blank, duration=took, output=output), ended, timeout)


class Place:
    """A fresh sandbox on a fresh copy of a tree, gone when the context closes."""

    def __init__(self, parts: Parts, hub: Hub, order: Order, site: Site) -> None:
        self._parts, self._hub, self._order, self._site = parts, hub, order, site

    async def __aenter__(self) -> Sandbox:
        """Make both. Raises Unavailable."""
        share = self._order.plan.share
        site = self._site
        workspace = await self._hub.workspace(Wanted(site.name, site.base, at=site.at, home=site.name, share=share, layer=site.layer))
        return await self._parts.sandboxes.create(sandbox_spec(site.name, workspace, self._order))

    async def __aexit__(self, *_: object) -> None:
        """Remove both."""
        await self._parts.sandboxes.destroy(self._site.name)
        await self._hub.discard(self._site.name)
        await self._hub.discard_home(self._site.name)


def sandbox_spec(name: str, workspace: Workspace, order: Order) -> SandboxSpec:
    """Return the sandbox a workspace is shown in."""
    return SandboxSpec(
        name=name,
        work=workspace.work,
        home=workspace.home,
        layers=workspace.layers,
        binds=workspace.binds,
        network=order.network,
    )


async def _tail(process: Process) -> str:
    kept: deque[bytes] = deque()  # a gate may print a hundred million lines
    size = 0
    async for line in process.lines():
        kept.append(line.data[-TAIL:])
        size += len(kept[-1]) + 1
        while size > TAIL and len(kept) > 1:
            size -= len(kept.popleft()) + 1
    return b"\n".join(kept).decode("utf-8", "replace")


def _judge(ran: GateRun, ended: Exit, timeout: float) -> GateRun:
    if ended.timed_out:
        return replace(ran, exit_code=124, reason=f"stopped after {timeout:g} s")
    if ended.code in CANNOT_RUN and _names_program(ran.output, ran.command):
        return replace(ran, reason=ran.output.strip().splitlines()[-1])
    return replace(ran, exit_code=ended.code)


def _names_program(output: str, command: str) -> bool:
    """Whether the shell complained about the gate's own program (a test that fails with 127 by itself is a red test)."""
    word = command.split(maxsplit=1)[0] if command.split() else ""
    last = output.strip().splitlines()[-1] if output.strip() else ""
    return bool(PLAIN.match(word)) and word in last and ("not found" in last or "denied" in last)
