"""The real Claude Code against a scripted model: what each kind of trouble becomes, and that a session survives its interruptions."""

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from claudecluster.agents.claude_code import ClaudeCode
from claudecluster.model.errors import Unavailable
from claudecluster.model.evidence import Outcome, Report
from claudecluster.model.task import Task
from claudecluster.ports.agent import Brief, Heard
from claudecluster.testing.anthropic import ScriptedAnthropic
from claudecluster.testing.places import OpenPlace
from claudecluster.testing.scenario import Fault, Scenario, Session, Tool, Turn

PATIENCE = 60.0
COUNT = Tool(name="Bash", input={"command": "echo ran >> ran.txt"})
LONG = Tool(name="Bash", input={"command": "echo begun >> begun.txt; test -e go.txt || sleep 600"})


@dataclass
class Bench:
    """One session in one place, against one scenario."""

    model: ScriptedAnthropic
    place: OpenPlace
    work: Path
    agent: ClaudeCode = field(default_factory=ClaudeCode)
    session: str = field(default_factory=lambda: str(uuid.uuid4()))
    heard: list[Heard] = field(default_factory=list)

    async def run(
        self, text: str = "Do the work.", *, resumed: bool = False, timeout: float = 300.0, key: str = "right", url: str = ""
    ) -> Report:
        env = {"ANTHROPIC_BASE_URL": url or self.model.url, "ANTHROPIC_API_KEY": key}
        task = Task("t", prompt="Do the work.", timeout=timeout)
        return await self.agent.run(Brief(task, 1, text, self.session, resumed=resumed, env=env), self.place, self.heard.append)

    def said(self, kind: str) -> list[str]:
        return [one.text for one in self.heard if one.kind == kind]

    def ran(self) -> int:
        file = self.work / "ran.txt"
        return len(file.read_text().split()) if file.exists() else 0


Play = Callable[..., AbstractAsyncContextManager[ScriptedAnthropic]]


@pytest.fixture
def place(tmp_path: Path) -> OpenPlace:
    for folder in ("work", "home"):
        (tmp_path / folder).mkdir()
    return OpenPlace(tmp_path / "work", env={"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home")})


def script(*turns: Turn) -> ScriptedAnthropic:
    return ScriptedAnthropic(Scenario(sessions=(Session(match="Do the work", turns=turns, closing="Nothing is left."),)), key="right")


def faulty(*faults: Fault) -> ScriptedAnthropic:
    return script(Turn(text="I run it now.", tools=(COUNT,), faults=faults), Turn(text="It ran."))


async def until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not so():
        assert time.monotonic() < end, "it never came to that"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("fault", "words", "hinted"),
    [
        (Fault(status=429, headers={"retry-after": "7200"}), "429", False),
        (Fault(status=403), "credentials", True),
        (Fault(status=400, message="Your credit balance is too low to access the Anthropic API."), "cannot pay", True),
    ],
)
async def test_what_passes_or_is_the_accounts_fault_is_not_the_agents(
    place: OpenPlace, tmp_path: Path, fault: Fault, words: str, hinted: bool
) -> None:
    async with faulty(fault) as model:
        with pytest.raises(Unavailable, match=words) as caught:
            await Bench(model, place, tmp_path / "work").run()
        assert bool(caught.value.hint) is hinted
        assert len(model.messages) == 1


async def test_a_wrong_key_is_told_at_once_instead_of_after_minutes(place: OpenPlace, tmp_path: Path) -> None:
    async with faulty() as model:
        with pytest.raises(Unavailable, match="credentials") as caught:
            await Bench(model, place, tmp_path / "work").run(key="wrong")
        assert "API key" in caught.value.hint
        assert len(model.messages) <= 3


async def test_a_model_that_is_not_there_is_unavailable(place: OpenPlace, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        bench = Bench(faulty(), place, tmp_path / "work", ClaudeCode(env={"CLAUDE_CODE_MAX_RETRIES": "0"}))
        with pytest.raises(Unavailable, match="cannot be reached"):
            await bench.run(url=url)


async def test_a_request_that_is_wrong_is_the_agents_failure(place: OpenPlace, tmp_path: Path) -> None:
    async with faulty(Fault(status=400, message="messages: nonsense", times=9)) as model:
        report = await Bench(model, place, tmp_path / "work").run()
    assert report.outcome is Outcome.FAILED
    assert "nonsense" in report.error


@pytest.mark.parametrize(
    "faults",
    [
        (Fault(status=529), Fault(status=500)),
        (Fault(status=429, headers={"retry-after": "1"}),),
        (Fault(sse_error="overloaded_error"),),
        (Fault(cut="before"),),
        (Fault(cut="mid-text"),),
        (Fault(cut="after-text"),),
        (Fault(cut="mid-tool"),),
        (Fault(garbage="empty"),),
        (Fault(hang=0.2, pings=True),),
    ],
    ids=lambda faults: "+".join(
        f"{kind}-{value}" for fault in faults for kind, value in fault.model_dump(exclude_defaults=True).items() if kind != "headers"
    ),
)
async def test_a_passing_fault_is_survived_and_the_tool_runs_once(place: OpenPlace, tmp_path: Path, faults: Sequence[Fault]) -> None:
    async with faulty(*faults) as model:
        bench = Bench(model, place, tmp_path / "work")
        report = await bench.run()
    assert report.outcome is Outcome.FINISHED, report
    assert bench.ran() == 1
    assert report.text == "It ran."


async def test_a_cut_after_a_tool_call_goes_on_from_its_result(place: OpenPlace, tmp_path: Path) -> None:
    async with faulty(Fault(cut="after-tool")) as model:
        bench = Bench(model, place, tmp_path / "work")
        assert (await bench.run()).outcome is Outcome.FINISHED
    assert bench.ran() == 1


async def test_retries_can_be_heard(place: OpenPlace, tmp_path: Path) -> None:
    async with faulty(Fault(status=529)) as model:
        bench = Bench(model, place, tmp_path / "work")
        await bench.run()
    assert any("529" in text for text in bench.said("notice"))
    assert bench.said("tool") == ["Bash echo ran >> ran.txt"]
    assert bench.said("text") == ["I run it now.", "It ran."]
    assert bench.said("result") == ["It ran."]


async def test_feedback_goes_to_the_same_session_with_its_whole_context(place: OpenPlace, tmp_path: Path) -> None:
    async with script(Turn(tools=(COUNT,)), Turn(text="Done."), Turn(when="failed", tools=(COUNT,)), Turn(text="Done again.")) as model:
        bench = Bench(model, place, tmp_path / "work")
        assert (await bench.run()).text == "Done."
        report = await bench.run("The gate failed.", resumed=True)
        assert (report.text, bench.ran()) == ("Done again.", 2)
        assert {asked.session for asked in model.messages} == {bench.session}
        assert len(model.messages[-1].body["messages"]) > len(model.messages[0].body["messages"])


@pytest.mark.parametrize("resumed", [True, False])
async def test_a_brief_that_is_wrong_about_its_session_finds_the_right_way(place: OpenPlace, tmp_path: Path, resumed: bool) -> None:
    async with script(Turn(text="Once."), Turn(text="Twice.")) as model:
        bench = Bench(model, place, tmp_path / "work")
        if not resumed:
            await bench.run()
        assert (await bench.run(resumed=resumed)).text == ("Once." if resumed else "Twice.")
        assert bench.said("notice")


async def test_feedback_to_a_lost_session_brings_the_order_with_it(place: OpenPlace, tmp_path: Path) -> None:
    async with script(Turn(text="Once.")) as model:
        bench = Bench(model, place, tmp_path / "work")
        await bench.run("The gate failed.", resumed=True)
        assert model.messages[0].prompt == "Do the work.\n\nThe gate failed."


async def test_a_killed_session_goes_on_where_it_was(place: OpenPlace, tmp_path: Path) -> None:
    async with script(Turn(tools=(COUNT,)), Turn(text="Now the long one.", tools=(LONG,)), Turn(text="Done.")) as model:
        bench = Bench(model, place, tmp_path / "work")
        running = asyncio.ensure_future(bench.run())
        transcript = tmp_path / "home" / ".claude" / "projects"
        await until(lambda: any("toolu_s001" in file.read_text() for file in transcript.rglob("*.jsonl")))  # it writes a little behind
        await until((bench.work / "begun.txt").exists)
        running.cancel()
        await asyncio.wait({running})
        (bench.work / "go.txt").touch()
        report = await bench.run(resumed=True)
    assert (report.outcome, report.text) == (Outcome.FINISHED, "Done.")
    assert bench.ran() == 1, "what was done before the kill is not done again"
    assert (bench.work / "begun.txt").read_text().split() == ["begun", "begun"]


class Pushed:
    """A clock that stands still until it is pushed."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.pushed = asyncio.Condition()

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        until = self.time + seconds
        async with self.pushed:
            await self.pushed.wait_for(lambda: self.time >= until)

    async def push(self, seconds: float) -> None:
        async with self.pushed:
            self.time += seconds
            self.pushed.notify_all()


@pytest.mark.parametrize(("push", "outcome"), [(90.0, Outcome.STALLED), (300.0, Outcome.TIMED_OUT)])
async def test_too_long_a_silence_and_too_long_a_task_end_the_session(
    place: OpenPlace, tmp_path: Path, push: float, outcome: Outcome
) -> None:
    async with script(Turn(tools=(LONG,))) as model:
        clock = Pushed()
        bench = Bench(model, place, tmp_path / "work", ClaudeCode(idle_timeout=60.0, clock=clock))
        running = asyncio.ensure_future(bench.run())
        await until((bench.work / "begun.txt").exists)
        await clock.push(push)
        report = await asyncio.wait_for(running, PATIENCE)
    assert report.outcome is outcome
    assert report.session == bench.session


async def test_a_server_left_in_the_background_does_not_hold_the_result_back_for_ever(place: OpenPlace, tmp_path: Path) -> None:
    left = Tool(name="Bash", input={"command": "sleep 600", "run_in_background": True})
    async with script(Turn(tools=(left,)), Turn(text="The server runs.")) as model:
        clock = Pushed()
        bench = Bench(model, place, tmp_path / "work", ClaudeCode(clock=clock))
        running = asyncio.ensure_future(bench.run())
        await until(lambda: bool(bench.said("result")))
        await clock.push(90.0)
        report = await asyncio.wait_for(running, PATIENCE)
    assert (report.outcome, report.text) == (Outcome.FINISHED, "The server runs.")


async def test_work_in_the_background_that_ends_is_waited_for(place: OpenPlace, tmp_path: Path) -> None:
    left = Tool(name="Bash", input={"command": "while [ ! -e go.txt ]; do sleep 0.05; done", "run_in_background": True})
    async with script(Turn(tools=(left,)), Turn(text="The test runs."), Turn(text="The test is green.")) as model:
        bench = Bench(model, place, tmp_path / "work")
        running = asyncio.ensure_future(bench.run())
        await until(lambda: bool(bench.said("result")))
        (bench.work / "go.txt").touch()
        assert (await running).text == "The test is green."


async def test_the_repositorys_own_instructions_reach_the_model(place: OpenPlace, tmp_path: Path) -> None:
    (tmp_path / "work" / "CLAUDE.md").write_text("Always count in dozens.")
    (tmp_path / "home" / "CLAUDE.md").write_text("Never count.")
    async with script(Turn(text="Done.")) as model:
        await Bench(model, place, tmp_path / "work").run("Do the work, /compact @nothing")
        asked = model.messages[0]
        assert "Always count in dozens." in str(asked.body)
        assert "Never count." not in str(asked.body)
        assert asked.prompt == "Do the work, /compact @nothing"


async def test_a_missing_program_is_said_with_a_hint(place: OpenPlace, tmp_path: Path) -> None:
    agent = ClaudeCode(cli=tmp_path / "nothing")
    with pytest.raises(Unavailable, match="nothing") as caught:
        await agent.check()
    assert caught.value.hint
    with pytest.raises(Unavailable, match="exit code 127"):
        await Bench(faulty(), place, tmp_path / "work", agent).run(url="http://127.0.0.1:9")
