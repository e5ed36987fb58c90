"""What the tests of hubs and workspaces share: hubs over the default back end, and over plain folders."""

import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from claudecluster.model.errors import SandboxLost, Unavailable
from claudecluster.model.place import Command, Exit, SandboxSpec, Stream
from claudecluster.model.tree import Wanted, Workspace
from claudecluster.ports.sandbox import SandboxProvider
from claudecluster.sandboxes.process import ProcessSandboxes
from claudecluster.testing.places import OpenPlace
from claudecluster.workspaces import signing
from claudecluster.workspaces.disk import Owner
from claudecluster.workspaces.repositories import GitRepositories, LocalHub

PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass
class Places:
    """A provider of plain folders."""

    kind: str = "test"
    overlays: bool = False
    made: dict[str, SandboxSpec] = field(default_factory=dict)

    async def check(self) -> None:
        """Nothing to check."""

    async def create(self, spec: SandboxSpec) -> OpenPlace:
        self.made[spec.name] = spec
        return OpenPlace(Path(spec.work), env={"PATH": PATH, "HOME": spec.home, **spec.env}, name=spec.name)

    async def attach(self, name: str) -> OpenPlace:
        if name not in self.made:
            raise SandboxLost(name)
        return await self.create(self.made[name])

    async def destroy(self, name: str) -> None:
        self.made.pop(name, None)

    async def names(self, prefix: str) -> list[str]:
        return [name for name in self.made if name.startswith(prefix)]


@dataclass(frozen=True)
class Ran:
    """How a command in a workspace ended."""

    code: int
    out: str
    err: str


@dataclass
class Lab:
    """Hubs over one state folder, and a way to act as an agent in a workspace."""

    state: Path
    provider: SandboxProvider
    repositories: GitRepositories
    owner: Owner = None

    async def hub(self, repo: Path | str) -> LocalHub:
        return await self.repositories.open(str(repo))

    async def act(self, workspace: Workspace, script: str) -> Ran:
        """Run a shell script in a workspace, as an agent would."""
        spec = SandboxSpec(f"{workspace.name}.agent", workspace.work, workspace.home, workspace.layers, workspace.binds)
        sandbox = await self.provider.create(spec)
        out: dict[Stream, list[str]] = {stream: [] for stream in Stream}
        async with sandbox.start(Command(("sh", "-c", script), timeout=60)) as process:
            async for line in process.lines():
                out[line.stream].append(line.data.decode(errors="replace"))
            ended: Exit = await process.wait()
        await self.provider.destroy(spec.name)
        return Ran(ended.code, "\n".join(out[Stream.OUT]), "\n".join(out[Stream.ERR]))

    async def done(self, hub: LocalHub, script: str, name: str = "r.t.1", **wanted: object) -> tuple[Workspace, Ran]:
        """Make a workspace at HEAD and run a script in it, which must succeed."""
        base = await hub.resolve("")
        workspace = await hub.workspace(Wanted(name, base, **wanted))  # type: ignore[arg-type] - names of fields
        ran = await self.act(workspace, script)
        assert ran.code == 0, ran.err
        return workspace, ran


@pytest.fixture(params=["process", "plain"])
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lab]:
    """Return a lab with each kind of workspace in turn: overlays in the default back end (as root, for another user), and plain folders."""
    state = tmp_path / "claudecluster"
    if request.param == "plain":
        yield build(state, Places())
        return
    provider = ProcessSandboxes(state / "sandboxes", PATH)
    try:
        await provider.check()
        yield build(state, provider, provider.owner)
    except Unavailable as error:
        pytest.skip(f"{error.message} ({error.hint})")
    finally:
        provider.close()


@pytest.fixture
def plain(tmp_path: Path) -> Lab:
    """Return a lab for tests that look at no workspace."""
    return build(tmp_path / "claudecluster", Places())


def build(state: Path, provider: SandboxProvider, owner: Owner = None) -> Lab:
    env = {**os.environ, "HOME": str(state.parent)}
    return Lab(state, provider, GitRepositories(state, provider, signing.load(state), env=env, owner=owner), owner)


Git = Callable[..., str]


@pytest.fixture
def git() -> Git:
    """Run git in a folder and return what it printed."""

    def run(at: Path, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(["git", *arguments], cwd=at, check=False, capture_output=True, timeout=60)
        if check:
            assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode(errors="replace").strip()

    return run


@pytest.fixture
def picture() -> Callable[[Path], str]:
    """Describe every file of a folder: mode, content, owner; equal pictures mean that nothing was changed."""

    def take(top: Path) -> str:
        found = {}
        for folder, names, files in os.walk(top):
            for name in (*names, *files):
                path = Path(folder, name)
                state = path.lstat()
                content = str(path.readlink()) if path.is_symlink() else path.read_bytes().hex() if path.is_file() else ""
                found[str(path.relative_to(top))] = (state.st_mode, state.st_uid, content)
        return json.dumps(found, sort_keys=True)

    return take
