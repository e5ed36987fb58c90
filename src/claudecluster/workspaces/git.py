"""Runs git: on our own repositories with our settings only, on the user's with the user's.

Called by every module of this room. It knows nothing of hubs or workspaces. Nothing here may run on a task's own
`.git`: that one is hostile.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from claudecluster.kit.processes import Completed, run
from claudecluster.model.errors import Unavailable

# What `git rev-parse --local-env-vars` lists: whoever starts us from a git hook has them set for another repository.
LOCAL = frozenset(
    "GIT_" + name
    for name in [
        "ALTERNATE_OBJECT_DIRECTORIES",
        "CONFIG",
        "CONFIG_PARAMETERS",
        "CONFIG_COUNT",
        "OBJECT_DIRECTORY",
        "DIR",
        "WORK_TREE",
        "IMPLICIT_WORK_TREE",
        "GRAFT_FILE",
        "INDEX_FILE",
        "NO_REPLACE_OBJECTS",
        "REPLACE_REF_BASE",
        "PREFIX",
        "SHALLOW_FILE",
        "COMMON_DIR",
        "NAMESPACE",
        "QUARANTINE_PATH",
    ]
)
SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.untrackedCache": "false",
    "core.attributesFile": "/dev/null",
    "core.excludesFile": "/dev/null",
    "core.protectHFS": "true",
    "core.protectNTFS": "true",
    "core.sharedRepository": "0644",  # whoever the sandbox runs as must be able to read our objects
    "core.logAllRefUpdates": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "index.version": "2",
    "safe.directory": "*",  # our own folders, whoever we are
    "core.bigFileThreshold": "64m",  # larger files are streamed, not held in memory
    "checkout.workers": "0",
    "pack.threads": "1",
    "advice.detachedHead": "false",
}


def settings(values: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that give git these settings for one command."""
    env = {"GIT_CONFIG_COUNT": str(len(values))}
    for place, (key, value) in enumerate(values.items()):
        env |= {f"GIT_CONFIG_KEY_{place}": key, f"GIT_CONFIG_VALUE_{place}": value}
    return env


OURS = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    **settings(SETTINGS),
}


@dataclass(frozen=True)
class Git:
    """Git with a given environment: `env` is this process's own, from which the variables of a surrounding repository are dropped."""

    env: Mapping[str, str] = field(repr=False)

    async def ours(self, folder: Path, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Completed:
        """Run on a repository of ours (`folder` is its git folder) with none of the user's settings. Raises Unavailable."""
        path = self.env.get("PATH", "/usr/local/bin:/usr/bin:/bin")
        return await self._run(arguments, {"PATH": path, **OURS, "GIT_DIR": str(folder), **(env or {})}, stdin)

    async def theirs(self, folder: Path, *arguments: str, stdin: bytes = b"") -> Completed:
        """Run in the user's folder as the user would, but never write to it on the side and never ask. Raises Unavailable."""
        kept = {name: value for name, value in self.env.items() if name not in LOCAL}
        extra = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
        return await self._run(("-C", str(folder), *arguments), kept | extra, stdin)

    async def must(self, folder: Path, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
        """Run on a repository of ours and return its output. Raises Unavailable where it fails."""
        done = await self.ours(folder, *arguments, stdin=stdin, env=env)
        if done.code:
            raise failed(arguments[0], done)
        return done.out

    async def _run(self, arguments: tuple[str, ...], env: Mapping[str, str], stdin: bytes) -> Completed:
        try:
            return await run(("git", *arguments), env=env, stdin=stdin)
        except FileNotFoundError as error:
            raise Unavailable("git is not installed", hint="install git 2.38 or newer") from error
        except OSError as error:
            raise Unavailable(f"git cannot run: {error}") from error


def reason(done: Completed) -> str:
    """Return the line that says best why git failed."""
    lines = [line.strip() for line in done.err.decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("fatal:", "error:", "remote:", " !"))]
    text = (telling or lines or [f"exit {done.code}"])[0]
    return text.removeprefix("fatal: ").removeprefix("error: ")


def failed(what: str, done: Completed) -> Unavailable:
    """Return the error for a git command of ours that should have worked."""
    if b"No space left" in done.err or b"Disk quota" in done.err:
        return Unavailable("the disk is full", hint="free some space in the state folder and try again")
    return Unavailable(f"git {what} failed: {reason(done)}")
