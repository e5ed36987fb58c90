"""The shipped agents misbehave exactly as they say."""

import asyncio
import os
from pathlib import Path

import pytest

from claudecluster.kit import processes
from claudecluster.model.errors import NotFound, SandboxLost, Unavailable
from claudecluster.model.evidence import Outcome
from claudecluster.model.task import Task
from claudecluster.ports.agent import Agent, Brief, Heard
from claudecluster.testing.agents import Crashing, Daemonic, Diligent, Endless, Flaky, Hostile, Idle
from claudecluster.testing.places import OpenPlace


@pytest.fixture
def place(tmp_path: Path) -> OpenPlace:
    (tmp_path / "work").mkdir()
    return OpenPlace(tmp_path / "work", env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)})


def brief(attempt: int = 1) -> Brief:
    return Brief(Task("t", prompt="x"), attempt, "x", "s1")


def ignore(_: Heard) -> None: ...


async def test_the_diligent_one_writes_each_attempts_files(place: OpenPlace) -> None:
    agent = Diligent(work={"t": [{"a.txt": "wrong"}, {"a.txt": "right"}]})
    for attempt, text in ((1, b"wrong"), (2, b"right"), (3, b"right")):
        assert (await agent.run(brief(attempt), place, ignore)).outcome is Outcome.FINISHED
        assert await place.read("a.txt") == text
    assert [one.attempt for one in agent.briefs] == [1, 2, 3]


async def test_the_idle_one_claims_what_it_did_not_do(place: OpenPlace) -> None:
    assert "every test passes" in (await Idle().run(brief(), place, ignore)).text
    assert not list(Path(place.work).iterdir())


async def test_the_endless_one_ends_only_by_being_cancelled(place: OpenPlace) -> None:
    agent = Endless()
    running = asyncio.ensure_future(agent.run(brief(), place, ignore))
    await asyncio.wait_for(agent.started.wait(), 30)
    assert not running.done()
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()


async def test_the_crashing_one_leaves_half_a_file(place: OpenPlace) -> None:
    with pytest.raises(RuntimeError):
        await Crashing().run(brief(), place, ignore)
    assert await place.read("half.txt")


async def test_the_daemonic_one_starts_more_than_it_says(place: OpenPlace) -> None:
    report = await Daemonic().run(brief(), place, ignore)
    assert report.outcome is Outcome.FINISHED
    assert await place.read("made.txt")


async def test_the_hostile_ones_traps_work(place: OpenPlace) -> None:
    assert (await processes.run(["git", "init", "-q", place.work])).code == 0
    await Hostile().run(brief(), place, ignore)
    with pytest.raises(NotFound):
        await place.read("pwned")
    assert (await processes.run(["git", "add", "--all"], cwd=Path(place.work))).code == 0
    assert await place.read("pwned") == b""


@pytest.mark.parametrize(("lost", "error"), [(False, Unavailable), (True, SandboxLost)])
async def test_the_flaky_one_works_in_the_end(place: OpenPlace, lost: bool, error: type[Exception]) -> None:
    agent: Agent = Flaky(times=2, lost=lost)
    for _ in range(2):
        with pytest.raises(error):
            await agent.run(brief(), place, ignore)
    assert (await agent.run(brief(), place, ignore)).outcome is Outcome.FINISHED
