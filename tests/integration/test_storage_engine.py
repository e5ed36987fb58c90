"""The engine's library keeps its own tables in our file: both write at once, and neither disturbs the other."""

import asyncio
import subprocess
import sys
from pathlib import Path

from claudecluster.kit.clock import SystemClock
from claudecluster.model.event import Change
from claudecluster.storage.open import open_store
from claudecluster.testing.contracts.store import RUN, begun

ENGINE = """
import sys
from dbos import DBOS

DBOS(config={"name": "neighbour", "system_database_url": sys.argv[1], "application_version": "1", "log_level": "CRITICAL"})

@DBOS.step()
def step(number):
    return number * 2

@DBOS.workflow()
def double(count):
    return sum(step(number) for number in range(count))

DBOS.launch()
print("up", flush=True)
print(sum(double(10) for _ in range(20)), flush=True)
DBOS.destroy()
"""


async def test_the_store_and_the_engine_share_a_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    (tmp_path / "engine.py").write_text(ENGINE)
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", str(tmp_path / "engine.py"), url, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    store = await open_store(url, clock=SystemClock())
    await begun(store)
    written = 0
    output = asyncio.ensure_future(engine.communicate())
    while not output.done() or written < 100:
        await store.change(Change(RUN, "k", data={"n": written}, key=f"k/{written}"))
        written += 1
        await asyncio.sleep(0.002)
    out, err = await output
    assert out.split() == [b"up", b"1800"], err.decode()
    assert [event.data["n"] for event in (await store.events(RUN, limit=1_000_000))[1:]] == list(range(written))
    await store.close()
