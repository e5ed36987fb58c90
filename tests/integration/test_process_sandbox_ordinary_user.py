"""The default back end for an ordinary user: nothing of it needs root."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from claudecluster.sandboxes.process import ProcessSandboxes

SOURCE = Path(__file__).parents[2] / "src"
USER = 12345

SCRIPT = """
import asyncio, json, os, sys, tempfile
from dataclasses import replace
from pathlib import Path
from claudecluster.model.errors import ClusterError
from claudecluster.model.place import Command, Limits
from claudecluster.sandboxes.process import ProcessSandboxes
from claudecluster.testing.contracts.ground import HEART, lively, local_spec, run, still

async def main():
    folder = Path(sys.argv[1])
    provider = ProcessSandboxes(folder / "state", os.environ["PATH"])
    said = {"owner": provider.owner}
    try:
        await provider.check()
    except ClusterError as error:
        print(json.dumps({"unavailable": f"{error.message}; {error.hint}"}))
        return
    spec = local_spec(provider, folder, "guest")
    (folder / "guest/lower/base").write_text("base")
    (folder / "guest/lower/gone").write_text("gone")
    place = await provider.create(spec)
    done = await run(place, "sh", "-c", "id -u; cat base; rm gone; echo changed > base; unshare -Ur true || echo no; ls")
    said["inside"] = b"\\n".join(done.out).decode()
    await place.write("deep/er", b"1")
    async with place.start(Command(("sh", "-c", HEART + " exec sleep 600"))) as process:
        await lively(place)
        said["while it runs"] = (await place.read("deep/er")).decode()
        said["uid"] = Path(f"/proc/{process.pid}").stat().st_uid
    await still(place)
    said["base"] = (folder / "guest/lower/base").read_text()
    small = await provider.create(replace(spec, limits=Limits(memory=64 * 1024 ** 2, processes=20)))
    said["hog"] = (await run(small, "/usr/bin/python3", "-c", "x = bytearray(300 * 1024 ** 2)")).exit.code
    said["fine"] = (await run(small, "/usr/bin/python3", "-c", "x = bytearray(5 * 1024 ** 2)")).exit.code
    await provider.destroy("guest")
    provider.close()
    print(json.dumps(said))

asyncio.run(main())
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp())  # an ordinary user cannot enter root's tmp_path
    if os.getuid() == 0:
        os.chown(made, USER, USER)
    yield made
    shutil.rmtree(made)


def as_ordinary_user(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    if os.getuid():
        argv, python = [], sys.executable
    else:
        if not shutil.which("setpriv") or not os.access("/usr/bin/python3", os.X_OK):
            pytest.skip("there is no setpriv or no system Python to be an ordinary user with")
        argv, python = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"], "/usr/bin/python3"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}
    able = subprocess.run(
        [*argv, python, "-c", "import claudecluster, enum; enum.StrEnum"], env=environment, capture_output=True, check=False
    )
    if able.returncode:
        pytest.skip("an ordinary user cannot read this checkout, or has no Python 3.11")
    return subprocess.run(
        [*argv, python, "-c", script, str(folder)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_an_ordinary_user_has_the_same_walls(folder: Path) -> None:
    done = as_ordinary_user(SCRIPT, folder)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    if "unavailable" in said:
        pytest.skip(said["unavailable"])
    user = os.getuid() or USER
    assert said == {
        "owner": None,
        "inside": "1000\nbaseno\nbase",
        "while it runs": "1",
        "uid": user,
        "base": "base",
        "hog": said["hog"],
        "fine": 0,
    }
    assert said["hog"] in {1, 137}


@pytest.mark.skipif(os.getuid() != 0, reason="only root chooses who guests run as")
async def test_root_makes_guests_of_a_user_nobody_else_has(tmp_path: Path) -> None:
    provider = ProcessSandboxes(tmp_path / "state", os.environ["PATH"])
    assert provider.owner == (64000, 64000)
    provider.close()
