"""Several processes, one store: nothing acknowledged is lost, nothing is heard twice or out of order."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from claudecluster.kit.clock import SystemClock
from claudecluster.model.errors import Unavailable
from claudecluster.model.event import Change, Event
from claudecluster.model.run import TaskState
from claudecluster.storage.open import open_store
from claudecluster.storage.store import SqlStore
from claudecluster.testing.contracts.store import RUN, begun

PATIENCE = 90.0
WRITER = """
import asyncio, sys
from claudecluster.kit.clock import SystemClock
from claudecluster.model.event import Change
from claudecluster.storage.open import open_store

async def main(url, name, count):
    store = await open_store(url, clock=SystemClock())
    print("up", flush=True)
    sys.stdin.readline()
    for number in range(int(count)):
        await store.change(Change("r0000001", name, "a", set={"attempts": number}, data={"n": number, "pad": "x" * 300}, key=f"{name}/{number}"))
        print(number, flush=True)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


@dataclass
class Writer:
    """Another process that writes changes and says so."""

    process: subprocess.Popen[str]

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()


Start = Callable[[str, int], Writer]


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
async def store(url: str) -> AsyncIterator[SqlStore]:
    store = await open_store(url, clock=SystemClock())
    yield store
    await store.close()


@pytest.fixture
def writers(url: str) -> Iterator[Start]:
    started: list[Writer] = []

    def start(name: str, count: int) -> Writer:
        argv = [sys.executable, "-c", WRITER, url, name, str(count)]
        writer = Writer(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        started.append(writer)
        return writer

    yield start
    for writer in started:
        writer.process.kill()
        writer.process.communicate()


async def follow(store: SqlStore, count: int) -> list[tuple[Event, float]]:
    found = []
    async with asyncio.timeout(PATIENCE), aclosing(store.since(RUN, 0)) as facts:
        async for event in facts:
            found.append((event, time.time() - event.at))
            if len(found) == count:
                return found
    raise AssertionError


async def test_a_follower_sees_every_fact_of_two_processes_once_and_in_order(store: SqlStore, writers: Start) -> None:
    await begun(store)
    both = [writers(name, 500) for name in ("one", "two")]
    assert [await asyncio.to_thread(writer.line) for writer in both] == ["up", "up"]
    follower = asyncio.create_task(follow(store, 1001))
    for writer in both:
        writer.go()
    heard = [event for event, _ in await follower]
    assert [event.seq for event in heard] == list(range(1, 1002))
    for name in ("one", "two"):
        assert [event.data["n"] for event in heard if event.kind == name] == list(range(500))
    assert heard == await store.events(RUN, limit=2000)


async def test_a_killed_writer_loses_nothing_it_was_told_is_written(url: str, store: SqlStore, writers: Start) -> None:
    await begun(store)
    for turn, name in enumerate(("one", "two", "three")):
        writer = writers(name, 100_000)
        assert await asyncio.to_thread(writer.line) == "up"
        writer.go()
        for _ in range(50 + turn * 37):
            last = int(await asyncio.to_thread(writer.line))
        writer.process.send_signal(signal.SIGKILL)
        out, _ = await asyncio.to_thread(writer.process.communicate)
        acknowledged = [int(line) for line in out.split() if line] or [last]
        found = [event.data["n"] for event in await store.events(RUN, limit=1_000_000) if event.kind == name]
        assert found == list(range(len(found)))
        assert len(found) > acknowledged[-1]
    assert await store.change(Change(RUN, "still.writes", "a", set={"state": TaskState.DONE}))
    await store.close()
    reader = await open_store(url, clock=SystemClock(), readonly=True)
    assert (await reader.task(RUN, "a")).state is TaskState.DONE
    await reader.close()


def test_processes_that_open_a_fresh_store_at_once_all_succeed(url: str) -> None:
    code = "import asyncio, sys\nfrom claudecluster.kit.clock import SystemClock\nfrom claudecluster.storage.open import open_store\n"
    code += "async def main():\n    store = await open_store(sys.argv[1], clock=SystemClock())\n    print(await store.runs())\n    await store.close()\n"
    code += "print('up', flush=True)\nsys.stdin.readline()\nasyncio.run(main())"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", code, url], **pipes) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "up\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=PATIENCE) for process in processes]
    assert ends == [("[]\n", "")] * 4


async def test_a_server_that_cuts_connections_loses_no_change(postgres_url: str, postgres_sql: Callable[[str], None]) -> None:
    store = await open_store(postgres_url, clock=SystemClock())
    await begun(store)
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    unsure = 0
    for number in range(60):
        change = Change(RUN, "k", data={"n": number}, key=f"k/{number}")
        if number % 10 == 5:
            await asyncio.to_thread(postgres_sql, cut)
        cutter = asyncio.create_task(asyncio.to_thread(postgres_sql, cut)) if number % 10 == 0 else None
        while True:
            try:
                assert await store.change(change)
                break
            except Unavailable:
                unsure += 1
        if cutter:
            await cutter
    facts = (await store.events(RUN))[1:]
    assert [event.data["n"] for event in facts] == list(range(60))
    assert [event.seq for event in facts] == list(range(2, 62))
    assert unsure < 60
    await store.close()


async def test_a_connection_cut_before_the_commit_is_made_good_unseen(postgres_url: str) -> None:
    store = await open_store(postgres_url, clock=SystemClock())
    tries = []

    def work(connection: sa.Connection) -> object:
        tries.append(1)
        if len(tries) == 1:
            connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
        return connection.exec_driver_sql("SELECT 1").scalar()

    assert await store._db.write(work) == 1
    assert len(tries) == 2
    await store.close()
