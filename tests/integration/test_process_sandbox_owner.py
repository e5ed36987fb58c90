"""`kill -9` of whoever owns sandboxes, at any instant, leaves no process and no mount; what is left on disk is found and swept."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from claudecluster.model.errors import SandboxLost, Unavailable
from claudecluster.model.place import Command
from claudecluster.sandboxes.none import NoSandboxes
from claudecluster.sandboxes.process import ProcessSandboxes
from claudecluster.testing.contracts.ground import HEART, lively, local_spec, run, still

SOURCE = Path(__file__).parents[2] / "src"
PATIENCE = 60.0

# Starts sandboxes without end, several at a time, each with a child that left its family; says so once all have begun.
OWNER = f"""
import asyncio, os, sys
from pathlib import Path
from claudecluster.model.place import Command
from claudecluster.sandboxes.none import NoSandboxes
from claudecluster.sandboxes.process import ProcessSandboxes
from claudecluster.testing.contracts.ground import local_spec

async def work(provider, number):
    place = await provider.create(local_spec(provider, Path(sys.argv[2]), f"run/task/{{number}}"))
    while True:
        async with place.start(Command(("sh", "-c", {HEART!r} + " echo up; exec sleep 600"))) as process:
            async for line in process.lines():
                print("up", flush=True)
                if number % 2:
                    break

async def main():
    provider = {{"process": ProcessSandboxes, "none": NoSandboxes}}[sys.argv[1]](Path(sys.argv[2]) / "state", os.environ["PATH"])
    await provider.check()
    print("ready", flush=True)
    await asyncio.gather(*(work(provider, number) for number in range(4)))

asyncio.run(main())
"""

# Adopts whatever its child leaves behind, so that nothing can hide; kills the child after a while and reports what does not end.
REAPER = """
import os, signal, subprocess, sys, time
from claudecluster.guest import linux
from claudecluster.guest.plain import _children
assert linux.adopt_orphans()
delay, ready = float(sys.argv[1]), sys.argv[2] == "ready"
child = subprocess.Popen(sys.argv[3:], stdout=subprocess.PIPE, start_new_session=True)
if ready:
    assert child.stdout.readline() == b"ready\\n"
time.sleep(delay)
os.kill(child.pid, signal.SIGKILL)
deadline = time.monotonic() + 30
while time.monotonic() < deadline:
    try:
        if os.waitpid(-1, os.WNOHANG)[0] == 0:
            time.sleep(0.005)
    except ChildProcessError:
        break
for pid in _children(os.getpid()):
    print(pid, open(f"/proc/{pid}/cmdline").read().replace("\\0", " "))
"""


def kill_one(kind: str, folder: Path, delay: float, *, ready: bool) -> str:
    """Return what an owner that was killed left running."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    argv = [sys.executable, "-c", REAPER, str(delay), "ready" if ready else "now", sys.executable, "-c", OWNER, kind, str(folder)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def mounts(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]


def provider_of(kind: str, folder: Path) -> ProcessSandboxes | NoSandboxes:
    return {"process": ProcessSandboxes, "none": NoSandboxes}[kind](folder / "state", os.environ["PATH"])


@pytest.fixture(params=["process", "none"])
async def kind(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    provider = provider_of(request.param, tmp_path / "trial")
    try:
        await provider.check()
    except Unavailable as error:
        pytest.skip(f"{error.message}; {error.hint}")
    finally:
        provider.close()
    return request.param


async def test_kill_9_of_the_owner_leaves_nothing_alive(kind: str, tmp_path: Path) -> None:
    chance = random.Random(kind)
    before = len(Path("/proc/self/mountinfo").read_text().splitlines())
    for _ in range(8):
        assert kill_one(kind, tmp_path, chance.random() * 0.3, ready=True) == ""
    for _ in range(4):
        assert kill_one(kind, tmp_path, chance.random() * 0.4, ready=False) == ""
    assert mounts(tmp_path) == []
    sweeper = provider_of(kind, tmp_path)
    for name in await sweeper.names(""):
        await sweeper.destroy(name)
    assert list(sweeper.records.state.iterdir()) == []
    assert len(Path("/proc/self/mountinfo").read_text().splitlines()) <= before


async def test_what_a_dead_owner_left_is_found_used_and_swept(kind: str, tmp_path: Path) -> None:
    assert kill_one(kind, tmp_path, 1.0, ready=True) == ""
    provider = provider_of(kind, tmp_path)
    try:
        names = await provider.names("run/")
        assert names
        place = await provider.attach(names[0])
        assert (await run(place, "echo", "again")).out == [b"again"]
        groups = [folder for name in names if (record := provider.records.read(name)) for folder in record.groups]
        for name in names:
            await provider.destroy(name)
        assert await provider.names("") == []
        assert [entry.name for entry in provider.records.state.iterdir()] == []
        assert [folder for folder in groups if folder.exists()] == []
    finally:
        provider.close()


async def test_kill_9_of_the_launcher_is_a_lost_sandbox_and_the_next_start_works(kind: str, tmp_path: Path) -> None:
    provider = provider_of(kind, tmp_path)
    try:
        place = await provider.create(local_spec(provider, tmp_path, "a"))
        async with place.start(Command(("sh", "-c", f"{HEART} sleep 600"))) as process:
            await lively(place)
            launcher = provider.launcher._live.process.pid
            if kind == "process":  # the one that holds the namespaces is the child of the one we started
                launcher = int(Path(f"/proc/{launcher}/task/{launcher}/children").read_text())
            os.kill(launcher, signal.SIGKILL)
            with pytest.raises(SandboxLost):
                await process.wait()
        await eventually_still(tmp_path / "a" / "upper" / "beat")
        assert (await run(place, "echo", "again")).out == [b"again"]
        await still(place)
    finally:
        provider.close()


async def test_killing_a_supervisor_does_not_free_what_it_watched(tmp_path: Path) -> None:
    provider = provider_of("none", tmp_path)
    try:
        place = await provider.create(local_spec(provider, tmp_path, "a"))
        async with place.start(Command(("sh", "-c", f"{HEART} sleep 600"))) as process:
            await lively(place)
            os.kill(process.pid, signal.SIGKILL)  # type: ignore[attr-defined] - ours tells
            assert (await process.wait()).code == 137
            await eventually_still(tmp_path / "a" / "upper" / "beat")
    finally:
        provider.close()


async def eventually_still(beat: Path) -> None:
    """Wait until the heart has not beaten for a while."""
    deadline, same, last = time.monotonic() + PATIENCE, 0, b""
    while same < 10:
        assert time.monotonic() < deadline, "something lives on"
        now = beat.read_bytes()
        same, last = (same + 1 if now == last else 0), now
        await asyncio.sleep(0.02)


async def test_closing_the_provider_ends_all_it_started(kind: str, tmp_path: Path) -> None:
    provider = provider_of(kind, tmp_path)
    place = await provider.create(local_spec(provider, tmp_path, "a"))
    async with place.start(Command(("sh", "-c", f"{HEART} sleep 600"))) as process:
        await lively(place)
        provider.close()
        with pytest.raises(SandboxLost):
            await process.wait()
    assert json.loads((provider.records.folder("a") / "record.json").read_text())["spec"]["name"] == "a"
    await still(await provider.create(local_spec(provider, tmp_path, "a")))
    provider.close()
