"""What a run needs of this machine, looked at one by one. Called by `doctor`; changes nothing but a probe file it removes.

Each look is a `Sign`: `ok`, `warn` (a run works, something is weaker or missing) or `fail` (a run will not work), and the way to mend it.
"""

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from claudecluster.assembly.paths import config_file
from claudecluster.assembly.settings import Settings
from claudecluster.kit import processes

GIT = (2, 38)  # `git merge-tree --write-tree`
ROOM = 2 * 1024**3  # bytes free below which a run is likely to end for want of them
BWRAP = ("bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "true")


@dataclass(frozen=True, slots=True)
class Sign:
    """One thing looked at: what was seen, and how to mend it where it is not as it should be."""

    name: str
    state: Literal["ok", "warn", "fail"]
    seen: str
    fix: str = ""


async def signs(settings: Settings) -> list[Sign]:
    """Return everything that was looked at. A look that cannot be made is a `fail`, never an exception."""
    return [
        _python(),
        await _git(settings),
        await _bubblewrap(settings),
        await _namespaces(settings),
        await _claude(),
        _model(settings),
        _home(settings),
        _room(settings),
        _keygen(settings),
        _cgroups(),
        *_private(settings),
    ]


def _python() -> Sign:
    return Sign("python", "ok", ".".join(map(str, sys.version_info[:3])))


async def _output(*argv: str, path: str = "") -> tuple[int, str]:
    try:
        done = await processes.run(argv, env={"PATH": path, "LC_ALL": "C"} if path else None)
    except OSError as error:
        return 127, str(error.strerror)
    return done.code, (done.out + done.err).decode("utf-8", "replace").strip()


async def _git(settings: Settings) -> Sign:
    fix = f"install git {GIT[0]}.{GIT[1]} or newer (Debian, Ubuntu: apt-get install git)"
    code, said = await _output("git", "--version", path=settings.path)
    if code:
        return Sign("git", "fail", "not found on PATH", fix)
    digits = [part for part in said.split()[2].split(".")[:2] if part.isdigit()]
    if tuple(map(int, digits)) < GIT:
        return Sign("git", "fail", said, fix)
    return Sign("git", "ok", said)


async def _bubblewrap(settings: Settings) -> Sign:
    code, said = await _output("bwrap", "--version", path=settings.path)
    if code:
        return Sign(
            "bubblewrap", "fail", "not found on PATH", "install it (Debian, Ubuntu: apt-get install bubblewrap), or use --sandbox none"
        )
    return Sign("bubblewrap", "ok", said)


async def _namespaces(settings: Settings) -> Sign:
    if shutil.which("bwrap", path=settings.path) is None:
        return Sign("namespaces", "warn", "cannot be tried without bubblewrap")
    code, said = await _output(*BWRAP, path=settings.path)
    if code:
        fix = (
            "allow unprivileged user namespaces: sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0"
        )
        return Sign("namespaces", "fail", said.splitlines()[-1] if said else f"bwrap exits with {code}", fix)
    return Sign("namespaces", "ok", "a sandbox without network starts")


async def _claude() -> Sign:
    found = find_spec("claude_agent_sdk")
    binary = Path(found.origin).parent / "_bundled" / "claude" if found and found.origin else None
    if binary is None or not binary.is_file():
        return Sign(
            "claude-code", "warn", "the CLI bundled with claude-agent-sdk is not there", "pip install --force-reinstall claude-agent-sdk"
        )
    version = binary.with_name("claude.version")
    said = version.read_text(encoding="utf-8").strip() if version.is_file() else (await _output(str(binary), "--version"))[1]
    if not os.access(binary, os.X_OK):
        return Sign("claude-code", "fail", f"{binary} may not be executed", f"chmod +x {binary}")
    return Sign("claude-code", "ok", f"{said} (bundled)")


def _model(settings: Settings) -> Sign:
    elsewhere = (settings.anthropic_api_key_file, settings.anthropic_api_key_keyring, settings.anthropic_api_key_vault)
    ways = [
        *(["Anthropic by key"] if settings.anthropic_api_key or any(elsewhere) else []),
        *(["Anthropic by token"] if settings.anthropic_auth_token else []),
        *([f"{len(settings.ollama_base_url)} Ollama"] if settings.ollama_base_url else []),
        *(server.name for server in settings.servers),
    ]
    if ways:
        return Sign("model access", "ok", ", ".join(ways))
    return Sign("model access", "warn", "none configured: only agent `command` will work", "set ANTHROPIC_API_KEY or OLLAMA_BASE_URL")


def _home(settings: Settings) -> Sign:
    home = settings.home
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".claudecluster-probe-"):
            pass
    except OSError as error:
        return Sign("state folder", "fail", f"{existing} is not writable: {error.strerror}", "set CLAUDECLUSTER_HOME to a folder of yours")
    return Sign("state folder", "ok", str(home))


def _room(settings: Settings) -> Sign:
    existing = next(folder for folder in (settings.home, *settings.home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    seen = f"{free / 1024**3:.1f} GiB free"
    if free < ROOM:
        return Sign("disk", "fail" if free < ROOM // 8 else "warn", seen, f"free some space on the disk of {existing}")
    return Sign("disk", "ok", seen)


def _keygen(settings: Settings) -> Sign:
    found = shutil.which("ssh-keygen", path=settings.path)
    if found is None:
        fix = "install it (Debian, Ubuntu: apt-get install openssh-client) to check signed commits with git itself"
        return Sign("ssh-keygen", "warn", "not found on PATH", fix)
    return Sign("ssh-keygen", "ok", found)


def _cgroups() -> Sign:
    weaker = "limits are kept by rlimits instead"
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").is_file():
        line = Path("/proc/self/cgroup").read_text(encoding="ascii").strip().rpartition("::")[2]
        own = root / line.lstrip("/")
        return (
            Sign("cgroups", "ok", "version 2, writable")
            if os.access(own, os.W_OK)
            else Sign("cgroups", "warn", f"version 2, not writable: {weaker}")
        )
    if os.access(root / "memory", os.W_OK):
        return Sign("cgroups", "ok", "version 1, writable")
    return Sign("cgroups", "warn", f"none writable: {weaker}")


def _private(settings: Settings) -> list[Sign]:
    file = config_file(settings.home)
    if file.is_file() and file.stat().st_mode & 0o077:
        return [Sign("config.toml", "warn", f"{file} can be read by others", f"chmod 600 {file}")]
    return []
