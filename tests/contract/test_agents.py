"""Every agent of ours keeps the promises of the port. Claude Code is the real program, against a scripted model."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from claudecluster.agents.claude_code import ClaudeCode
from claudecluster.agents.command import CommandAgent
from claudecluster.model.task import Task
from claudecluster.testing.anthropic import ScriptedAnthropic
from claudecluster.testing.contracts.agent import AgentContract, Bench, Job
from claudecluster.testing.places import OpenPlace
from claudecluster.testing.scenario import Fault, Scenario, Session, Tool, Turn

LOUD = "head -c 3000000 /dev/zero | tr '\\0' x; echo"
HANG = "while :; do date +%s%N > beat; sleep 0.1; done"
COMMANDS = {Job.CREATE: "echo made > made.txt", Job.FAIL: "echo no >&2; exit 3", Job.HANG: HANG, Job.SHOUT: LOUD}
TURNS = {
    Job.CREATE: (Turn(tools=(Tool(name="Write", input={"file_path": "{cwd}/made.txt", "content": "made"}),)), Turn(text="Made.")),
    Job.FAIL: (Turn(text="no", faults=(Fault(status=400, message="the request is not right", times=9),)),),
    Job.HANG: (Turn(tools=(Tool(name="Bash", input={"command": HANG}),)),),
    Job.SHOUT: (Turn(text="y" * 3_000_000, tools=(Tool(name="Bash", input={"command": LOUD}),)), Turn(text="Loud enough.")),
}


@pytest.fixture
def place(tmp_path: Path) -> OpenPlace:
    for folder in ("work", "home"):
        (tmp_path / folder).mkdir()
    return OpenPlace(tmp_path / "work", env={"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home")})


class TestCommand(AgentContract):
    @pytest.fixture
    def bench(self, place: OpenPlace) -> Bench:
        return Bench(CommandAgent(), place, lambda job: Task("t", run=COMMANDS[job]))


class TestClaudeCode(AgentContract):
    @pytest.fixture
    async def bench(self, place: OpenPlace) -> AsyncIterator[Bench]:
        scenario = Scenario(sessions=tuple(Session(match=f"do {job}", turns=turns) for job, turns in TURNS.items()))
        async with ScriptedAnthropic(scenario, key="token") as model:
            env = {"ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": "token"}
            yield Bench(ClaudeCode(), place, lambda job: Task("t", prompt=f"Please do {job}."), env)
