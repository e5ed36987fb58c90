"""Run a trusted program of ours (git, ssh-keygen) to its end. Agents run in sandboxes, never here."""

import asyncio
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended and all it printed."""

    code: int
    out: bytes
    err: bytes


async def run(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> Completed:
    """Run it and collect its output; it is killed if the caller is cancelled. Raises OSError if it cannot start."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = await process.communicate(stdin or None)
    except BaseException:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
        raise
    return Completed(process.returncode or 0, out, err)


def born(pid: int) -> str:
    """Return the kernel's start time of a process, which with its pid names it for ever; empty if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:  # noqa: PTH123 - /proc
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return _alive_without_proc(pid)
    return "" if fields[0] in {"Z", "X"} else fields[19]


def _alive_without_proc(pid: int) -> str:
    if os.path.exists("/proc/self/stat"):  # noqa: PTH110 - asks only whether this system has /proc
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "alive"
    return "alive"
