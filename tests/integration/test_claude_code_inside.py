"""Claude Code where it really works: in a bubblewrap sandbox without a network, its model behind the gateway's socket."""

import shutil
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from claudecluster.agents.claude_code import ClaudeCode
from claudecluster.agents.command import CommandAgent
from claudecluster.gateway.gateway import GatewayConfig, LocalGateway
from claudecluster.gateway.upstream.anthropic import AnthropicConfig
from claudecluster.gateway.upstream.keys import fixed
from claudecluster.model.errors import Unavailable
from claudecluster.model.evidence import Outcome, Report
from claudecluster.model.place import Bind, SandboxSpec
from claudecluster.model.task import Task
from claudecluster.model.usage import Metered
from claudecluster.ports.agent import Agent, Brief, Heard
from claudecluster.ports.gateway import Visitor
from claudecluster.sandboxes.process import ProcessSandboxes
from claudecluster.testing.agents import Daemonic
from claudecluster.testing.anthropic import ScriptedAnthropic
from claudecluster.testing.scenario import Fault, Scenario, Session, Tool, Turn

KEY = "sk-ant-real-key-of-the-test"
LOOK = "env; id -u; cat /proc/net/dev"
TURNS = (
    Turn(text="I look around.", tools=(Tool(name="Bash", input={"command": LOOK}),), faults=(Fault(cut="mid-text"),)),
    Turn(tools=(Tool(name="Write", input={"file_path": "{cwd}/made.txt", "content": "made"}),)),
    Turn(text="Done."),
    Turn(when="failed", tools=(Tool(name="Edit", input={"file_path": "{cwd}/made.txt", "old_string": "made", "new_string": "mended"}),)),
    Turn(text="Mended."),
)


@dataclass
class House:
    """Sandboxes and a gateway in one folder, as a run has them."""

    root: Path
    model: ScriptedAnthropic
    sandboxes: ProcessSandboxes
    gateway: LocalGateway
    metered: list[Metered]
    session: str = field(default_factory=lambda: str(uuid.uuid4()))

    async def run(self, agent: Agent, task: Task, text: str, *, resumed: bool = False) -> tuple[Report, list[Heard]]:
        name = f"r1.{task.id}.1"
        work, home = self.root / "work", self.root / "home"
        door = await self.gateway.open(name, Visitor("r1", task.id, 1))
        binds = (Bind(work, str(work), writable=True), Bind(home, str(home), writable=True))
        sandbox = await self.sandboxes.create(SandboxSpec(name, str(work), str(home), binds=binds, socket=door.socket))
        heard: list[Heard] = []
        try:
            return await agent.run(Brief(task, 1, text, self.session, resumed=resumed, env=door.env), sandbox, heard.append), heard
        finally:
            await self.sandboxes.destroy(name)
            await self.gateway.close(name)


@pytest.fixture
def root() -> Iterator[Path]:
    """Return a folder that a sandbox's own user can reach."""
    made = Path(tempfile.mkdtemp(prefix="claudecluster-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def house(root: Path) -> AsyncIterator[House]:
    agent = ClaudeCode()
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    sandboxes = ProcessSandboxes(root / "state", path, readonly=(agent.cli.parent,))
    try:
        await sandboxes.check()
    except Unavailable as error:
        pytest.skip(f"{error}; {error.hint}")
    for folder in ("work", "home"):
        (root / folder).mkdir()
        if sandboxes.owner:
            shutil.chown(root / folder, *sandboxes.owner)
    metered: list[Metered] = []

    async def meter(one: Metered) -> None:
        metered.append(one)

    async with ScriptedAnthropic(Scenario(sessions=(Session(match="Do the work", turns=TURNS),)), key=KEY) as model:
        gateway = LocalGateway(GatewayConfig(sockets=root / "s", anthropic=AnthropicConfig(base_url=model.url, key=fixed(KEY))), meter)
        yield House(root, model, sandboxes, gateway, metered)
        await gateway.aclose()
        sandboxes.close()


async def test_a_session_works_through_its_one_socket_and_never_sees_the_key(house: House) -> None:
    task = Task("t", prompt="Do the work.")
    report, heard = await house.run(ClaudeCode(), task, task.prompt)
    assert (report.outcome, report.text) == (Outcome.FINISHED, "Done."), heard
    assert (house.root / "work" / "made.txt").read_text() == "made"
    seen = "\n".join(one.text for one in heard if one.kind == "output")
    assert "ANTHROPIC_BASE_URL" in seen
    assert KEY not in "\n".join(one.text for one in heard)
    assert "eth0" not in seen
    assert {asked.headers["x-api-key"] for asked in house.model.messages} == {KEY}
    assert sum(one.usage.output_tokens for one in house.metered) > 0

    report, _ = await house.run(ClaudeCode(), task, "The gate failed.", resumed=True)
    assert (report.outcome, report.text) == (Outcome.FINISHED, "Mended.")
    assert (house.root / "work" / "made.txt").read_text() == "mended"


async def test_daemons_end_with_the_process_that_left_them(house: House) -> None:
    await house.run(Daemonic(), Task("d"), "go")
    beat = house.root / "work" / "beat"
    before = beat.read_bytes() if beat.exists() else b""
    report, _ = await house.run(CommandAgent(), Task("c", run="sleep 0.5; cat beat 2>/dev/null; ps -e 2>/dev/null | wc -l"), "go")
    assert report.outcome is Outcome.FINISHED
    assert (beat.read_bytes() if beat.exists() else b"") == before
