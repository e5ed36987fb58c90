"""What every `Agent` must do.

Four lines make a suite of it:

    class TestMine(AgentContract):
        @pytest.fixture
        async def bench(self, tmp_path): yield Bench(agent, place, order)

`order(job)` gives the Task by which this agent does one of the `Job`s, whatever that takes: a command, a prompt and a scripted model.
Needs pytest-asyncio in auto mode.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum

from claudecluster.model.errors import NotFound, SandboxLost, Unavailable
from claudecluster.model.evidence import Outcome, Report
from claudecluster.model.place import Command, Exit, Line
from claudecluster.model.task import Task
from claudecluster.ports.agent import Agent, Brief, Heard
from claudecluster.ports.sandbox import Process, Sandbox

KINDS = {"text", "tool", "result", "error", "notice", "output"}
PATIENCE = 60.0  # seconds; a loaded machine is no broken agent


class Job(StrEnum):
    """What a task must make the agent do in the work folder."""

    CREATE = "create"  # write `made.txt` with the text "made", then end well
    FAIL = "fail"  # end badly
    HANG = "hang"  # start a process that never ends and writes something new into `beat` ten times a second
    SHOUT = "shout"  # let a process print one line of 3,000,000 characters, then end well


@dataclass(frozen=True, slots=True)
class Bench:
    """An agent, a place to work in, and how to ask it."""

    agent: Agent
    place: Sandbox
    order: Callable[[Job], Task]
    env: Mapping[str, str] = field(default_factory=dict)
    session: str = field(default_factory=lambda: str(uuid.uuid4()))

    def brief(self, job: Job, *, timeout: float = PATIENCE, resumed: bool = False) -> Brief:
        """Return a brief for a job."""
        task = replace(self.order(job), timeout=timeout)
        return Brief(task, 1, task.prompt or task.run, self.session, resumed=resumed, env=self.env)

    async def beat(self) -> bytes:
        """Return what the HANG job's process wrote last; empty before it did."""
        try:
            return await self.place.read("beat")
        except NotFound:
            return b""


class AgentContract:
    """The promises of `ports/agent.py`."""

    async def test_it_has_a_name_and_can_work_here(self, bench: Bench) -> None:
        """Checking says nothing where all is well."""
        assert bench.agent.name
        await bench.agent.check()

    async def test_finished_work_is_in_the_work_folder(self, bench: Bench) -> None:
        """A report of success names its session, and what was asked for is there."""
        report, _ = await _run(bench, bench.brief(Job.CREATE))
        assert report.outcome is Outcome.FINISHED, report
        assert report.session == bench.session
        assert (await bench.place.read("made.txt")).strip() == b"made"

    async def test_a_failing_agent_is_a_report_not_an_error(self, bench: Bench) -> None:
        """And the report says why."""
        report, _ = await _run(bench, bench.brief(Job.FAIL))
        assert report.outcome is Outcome.FAILED
        assert report.error

    async def test_what_it_does_can_be_heard(self, bench: Bench) -> None:
        """In the words of `Heard`."""
        _, heard = await _run(bench, bench.brief(Job.CREATE))
        _, louder = await _run(bench, bench.brief(Job.FAIL))
        assert {one.kind for one in heard + louder} <= KINDS
        assert all(isinstance(one.text, str) for one in heard + louder)

    async def test_a_very_long_line_does_not_stop_it(self, bench: Bench) -> None:
        """Agents print what they like."""
        report, _ = await _run(bench, bench.brief(Job.SHOUT))
        assert report.outcome is Outcome.FINISHED, report

    async def test_the_tasks_timeout_stops_it_with_all_it_started(self, bench: Bench) -> None:
        """Time being up is a report too."""
        report, _ = await _run(bench, bench.brief(Job.HANG, timeout=3.0))
        assert report.outcome is Outcome.TIMED_OUT
        assert report.error
        await _still(bench)

    async def test_cancelling_it_ends_all_it_started_and_it_can_be_run_again(self, bench: Bench) -> None:
        """As after a crash of ours: the same session, resumed."""
        running = asyncio.ensure_future(_run(bench, bench.brief(Job.HANG)))
        await _lively(bench)
        running.cancel()
        await asyncio.wait({running})
        await _still(bench)
        report, _ = await _run(bench, replace(bench.brief(Job.CREATE, resumed=True), session=str(uuid.uuid4())))
        assert report.outcome is Outcome.FINISHED, report

    async def test_a_sandbox_that_cannot_start_anything_is_not_the_agents_failure(self, bench: Bench) -> None:
        """Unavailable goes through."""
        await _raises(Unavailable, replace(bench, place=_Broken(bench.place, Unavailable("no room"), at_start=True)))

    async def test_a_sandbox_that_vanishes_is_not_the_agents_failure(self, bench: Bench) -> None:
        """SandboxLost goes through."""
        await _raises(SandboxLost, replace(bench, place=_Broken(bench.place, SandboxLost("it is gone"), at_start=False)))


async def _run(bench: Bench, brief: Brief) -> tuple[Report, list[Heard]]:
    heard: list[Heard] = []
    return await bench.agent.run(brief, bench.place, heard.append), heard


async def _raises(expected: type[Exception], bench: Bench) -> None:
    try:
        report, _ = await _run(bench, bench.brief(Job.CREATE))
    except expected:
        return
    raise AssertionError(f"{expected.__name__} was expected, not {report}")


async def _lively(bench: Bench) -> None:
    """Wait until the HANG job's process is heard."""
    end = time.monotonic() + PATIENCE
    while not await bench.beat():
        assert time.monotonic() < end, "the HANG job never started its process"
        await asyncio.sleep(0.02)


async def _still(bench: Bench) -> None:
    """Wait until the HANG job's process is heard no more."""
    end, before = time.monotonic() + PATIENCE, b"?"
    while (now := await bench.beat()) != before:
        assert time.monotonic() < end, "a process outlived its agent"
        before = now
        await asyncio.sleep(0.6)  # six beats


class _Broken:
    """A sandbox that fails when it starts something, or as soon as it is listened to."""

    def __init__(self, place: Sandbox, error: Exception, *, at_start: bool) -> None:
        self._place = place
        self._error = error
        self._at_start = at_start

    @property
    def name(self) -> str:
        return self._place.name

    @property
    def work(self) -> str:
        return self._place.work

    @property
    def socket(self) -> str:
        return self._place.socket

    def start(self, command: Command) -> AbstractAsyncContextManager[Process]:
        return self._start(command)

    async def read(self, path: str) -> bytes:
        return await self._place.read(path)

    async def write(self, path: str, data: bytes) -> None:
        await self._place.write(path, data)

    @asynccontextmanager
    async def _start(self, command: Command) -> AsyncIterator[Process]:
        if self._at_start:
            raise self._error
        async with self._place.start(command) as process:
            yield _Lost(process, self._error)


class _Lost:
    def __init__(self, process: Process, error: Exception) -> None:
        self._process = process
        self._error = error

    async def lines(self) -> AsyncIterator[Line]:
        if self._error:
            raise self._error
        async for line in self._process.lines():
            yield line

    async def send(self, data: bytes) -> None:
        await self._process.send(data)

    async def close_stdin(self) -> None:
        await self._process.close_stdin()

    async def wait(self) -> Exit:
        raise self._error
