"""The store on a real disk: opened fresh, new, old, read-only, damaged and full."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from claudecluster.kit.clock import SystemClock
from claudecluster.model.errors import Conflict, NotFound, Refused, Unavailable
from claudecluster.model.event import Change
from claudecluster.model.run import TaskState
from claudecluster.model.usage import Metered, Usage
from claudecluster.storage.migrations import HEAD
from claudecluster.storage.open import open_store
from claudecluster.storage.store import SqlStore
from claudecluster.storage.tables import METADATA
from claudecluster.testing.contracts.store import RUN, begun

CLOCK = SystemClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "store.db"


def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqlStore]:
    store = await open_store(url(path), clock=CLOCK)
    yield store
    await store.close()


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def opening(readonly: str = "False") -> str:
    return (
        "import asyncio, sys\nfrom claudecluster.kit.clock import SystemClock\nfrom claudecluster.storage.open import open_store\n"
        f"async def main():\n    store = await open_store(sys.argv[1], clock=SystemClock(), readonly={readonly})\n    await store.close()\n"
        "asyncio.run(main())\nprint('\\n'.join(sys.modules))"
    )


def layout(path: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE name LIKE 'cc_%' AND name != 'cc_version' ORDER BY name")
        found = [(name, " ".join((sql or "").split())) for name, sql in rows]
    connection.close()
    return found


async def test_the_migrations_make_the_tables_the_code_knows(store: SqlStore, path: Path, tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/plain.db")
    METADATA.create_all(engine)
    engine.dispose()
    assert layout(path) == layout(tmp_path / "plain.db")
    assert len(layout(path)) > 10


async def test_an_up_to_date_store_opens_without_the_migration_runner(store: SqlStore, path: Path) -> None:
    for readonly in ("False", "True"):
        modules = set(python(opening(readonly), url(path)).split())
        assert "sqlalchemy" in modules
        assert not modules & {"alembic", "psycopg", "dbos", "claudecluster.storage.migrate"}


async def test_a_fresh_store_is_nobody_elses(store: SqlStore, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_other_tables_in_the_same_file_are_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE workflow_status (id TEXT)")
        other.execute("INSERT INTO workflow_status VALUES ('w')")
    other.close()
    with pytest.raises(NotFound, match="no runs yet"):
        await open_store(url(path), clock=CLOCK, readonly=True)
    store = await open_store(url(path), clock=CLOCK)
    await begun(store)
    await store.close()
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT id FROM workflow_status").fetchall() == [("w",)]
    other.close()


async def test_a_store_of_newer_code_is_refused_untouched(store: SqlStore, path: Path) -> None:
    await begun(store)
    await store.close()
    with sqlite3.connect(path) as other:
        other.execute("UPDATE cc_version SET version_num = '9999'")
    other.close()
    for readonly in (False, True):
        with pytest.raises(Refused, match="newer ClaudeCluster") as refused:
            await open_store(url(path), clock=CLOCK, readonly=readonly)
        assert "update" in refused.value.hint
    assert HEAD < "9999"


async def test_a_store_of_older_code_is_not_changed_by_a_reader(store: SqlStore, path: Path) -> None:
    await store.close()
    with sqlite3.connect(path) as other:
        other.execute("UPDATE cc_version SET version_num = '0000'")
    other.close()
    with pytest.raises(Refused, match="older ClaudeCluster"):
        await open_store(url(path), clock=CLOCK, readonly=True)


async def test_a_reader_makes_nothing_where_nothing_is(path: Path) -> None:
    with pytest.raises(NotFound, match="no runs yet"):
        await open_store(url(path), clock=CLOCK, readonly=True)
    assert not path.parent.exists()
    path.parent.mkdir()
    path.touch()
    with pytest.raises(NotFound, match="no runs yet"):
        await open_store(url(path), clock=CLOCK, readonly=True)
    assert path.stat().st_size == 0


async def test_a_reader_sees_what_a_writer_writes_and_cannot_write(store: SqlStore, path: Path) -> None:
    await begun(store)
    reader = await open_store(url(path), clock=CLOCK, readonly=True)
    await store.change(Change(RUN, "task.done", "a", set={"state": TaskState.DONE}))
    assert (await reader.task(RUN, "a")).state is TaskState.DONE
    with pytest.raises(Refused, match="reading only"):
        await reader.change(Change(RUN, "x"))
    with pytest.raises(Refused, match="reading only"):
        await reader.roster.bury("w")
    await reader.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Unavailable, match="permission denied") as unavailable:
        await open_store(url(tmp_path / "x" / "store.db"), clock=CLOCK)
    assert "CLAUDECLUSTER_HOME" in unavailable.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_closed_store_on_a_read_only_disk_can_be_read(store: SqlStore, path: Path) -> None:
    await begun(store)
    await store.close()
    path.parent.chmod(0o500)
    reader = await open_store(url(path), clock=CLOCK, readonly=True)
    assert (await reader.run(RUN)).id == RUN
    await reader.close()
    path.parent.chmod(0o700)


async def test_a_path_that_cannot_be_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "store.db", tmp_path):
        with pytest.raises(Unavailable, match="cannot be opened") as unavailable:
            await open_store(url(path), clock=CLOCK)
        assert "\n" not in unavailable.value.message
        assert unavailable.value.hint


async def test_a_file_that_is_no_database_is_said_so(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database, but some notes of mine\n" * 500)
    for readonly in (False, True):
        with pytest.raises(Unavailable, match="damaged or not a database") as unavailable:
            await open_store(url(path), clock=CLOCK, readonly=readonly)
        assert "snapshot" in unavailable.value.hint
    assert path.read_bytes().startswith(b"this is no database")


async def listed(path: Path) -> None:
    store = await open_store(url(path), clock=CLOCK)
    try:
        await store.tasks(RUN)
    finally:
        await store.close()


async def test_a_damaged_page_is_said_so(store: SqlStore, path: Path) -> None:
    await begun(store, *(f"t{number}" for number in range(500)))
    await store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: 4096 * 2] + b"\xff" * (len(whole) - 4096 * 2))
    with pytest.raises(Unavailable, match="damaged or not a database"):
        await listed(path)


async def test_a_full_disk_is_said_so_and_loses_nothing(store: SqlStore) -> None:
    await begun(store)
    await store.write_log(RUN, "a", 1, b"kept")
    await store._db.write(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count=1").scalar())  # SQLite then finds no room
    with pytest.raises(Unavailable, match="disk is full") as unavailable:
        await store.write_log(RUN, "a", 1, os.urandom(5_000_000))
    assert "free some space" in unavailable.value.hint
    assert (await store.read_log(RUN, "a"))[0][2] == b"kept"


async def test_a_busy_file_is_waited_for(store: SqlStore, path: Path) -> None:
    await begun(store)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    change = asyncio.create_task(store.change(Change(RUN, "x")))
    assert (await store.run(RUN)).id == RUN  # readers do not wait
    assert not change.done()
    other.execute("COMMIT")
    other.close()
    assert await change


@pytest.mark.parametrize(
    "wrong", ["mysql://host/db", "sqlite://", "sqlite:///:memory:", "not a url", "", "sqlite+aiosqlite:///x", "postgresql+asyncpg://x/y"]
)
async def test_a_url_that_names_no_store_is_refused(wrong: str) -> None:
    with pytest.raises(Refused) as refused:
        await open_store(wrong, clock=CLOCK)
    assert "sqlite:///PATH" in refused.value.hint


async def test_a_server_that_is_not_there_is_unavailable_and_its_password_stays_ours(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(Unavailable, match="does not answer") as unavailable:
        await open_store(f"postgresql://me:s3cret@/db?host={tmp_path}", clock=CLOCK)
    assert "s3cret" not in unavailable.value.message + unavailable.value.hint
    assert unavailable.value.delay


async def test_a_closed_store_is_unavailable(path: Path) -> None:
    store = await open_store(url(path), clock=CLOCK)
    await begun(store)
    follower = store.since(RUN, 1)
    waiting = asyncio.ensure_future(anext(follower))
    await asyncio.sleep(0)
    await store.close()
    for call in (waiting, store.runs(), store.change(Change(RUN, "x"))):
        with pytest.raises(Unavailable, match="closed"):
            await call
    await store.close()


async def test_a_snapshot_is_a_whole_store_in_one_file(store: SqlStore, tmp_path: Path) -> None:
    await begun(store)
    busy = asyncio.gather(*(store.change(Change(RUN, f"k{number}")) for number in range(50)))
    (tmp_path / "copy").mkdir()
    await store.snapshot(tmp_path / "copy/snapshot.db")
    await busy
    assert [file.name for file in (tmp_path / "copy").iterdir()] == ["snapshot.db"]
    assert (tmp_path / "copy/snapshot.db").stat().st_mode & 0o777 == 0o600
    copy = await open_store(url(tmp_path / "copy/snapshot.db"), clock=CLOCK)
    events = await copy.events(RUN)
    assert events == (await store.events(RUN))[: len(events)]
    assert (await copy.task(RUN, "a")).state is TaskState.PENDING
    await copy.close()
    with pytest.raises(Conflict):
        await store.snapshot(tmp_path / "copy/snapshot.db")
    with pytest.raises(Unavailable, match="cannot be written"):
        await store.snapshot(tmp_path / "nowhere" / "snapshot.db")


async def test_a_cancelled_caller_leaves_a_sound_store(store: SqlStore) -> None:
    await begun(store)
    calls = [asyncio.ensure_future(store.change(Change(RUN, f"k{number}"))) for number in range(50)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    seqs = [event.seq for event in await store.events(RUN)]
    assert seqs == list(range(1, len(seqs) + 1))
    assert len(seqs) >= 26


async def test_ten_thousand_tasks_are_added_and_listed(store: SqlStore) -> None:
    began = time.perf_counter()
    await begun(store, *(f"t{number}" for number in range(10_000)))
    assert len(await store.tasks(RUN)) == 10_000
    assert time.perf_counter() - began < 10  # measured: 0.3 s


async def test_all_that_was_metered_is_told_by_whom_and_by_what_not_request_by_request(store: SqlStore) -> None:
    used = Usage(requests=1, input_tokens=10, output_tokens=2, cost_usd=0.5)
    for key, model, user in (("1", "a", ""), ("2", "a", ""), ("3", "b", "ada")):
        await store.meter(Metered(key, "", "", 0, "anthropic", model, used, float(key), degraded=model == "b", user=user))
    found = {(record.model, record.user, record.degraded): (record.usage, record.at) for record in await store.spent()}
    assert found == {("a", "", False): (used + used, 2.0), ("b", "ada", True): (used, 3.0)}


async def test_what_was_metered_is_told_by_its_time_summed_or_request_by_request(store: SqlStore) -> None:
    used = Usage(requests=1, input_tokens=10, output_tokens=2, cost_usd=0.5)
    records = [Metered(str(n), "r", "t", 1, "anthropic", "m", used, float(n), session="s", user="ada", degraded=n == 3) for n in (1, 2, 3)]
    for record in records:
        await store.meter(record)
    assert await store.metered(0.0) == records
    assert await store.metered(2.0) == records[2:]
    assert [record.usage for record in await store.spent(1.0, 2.0)] == [used]
    assert sum(record.usage.requests for record in await store.spent(until=2.0)) == 2


async def test_answers_of_lesser_models_are_told_by_task_and_model(store: SqlStore) -> None:
    used = Usage(requests=1)
    for key, task, model in (("1", "a", "qwen"), ("2", "a", "qwen"), ("3", "a", "llama"), ("4", "b", "opus"), ("5", "c", "qwen")):
        await store.meter(Metered(key, RUN, task, 1, "p", model, used, float(key), degraded=model != "opus"))
    assert await store.stand_ins(RUN) == {"a": {"qwen": 2, "llama": 1}, "c": {"qwen": 1}}
    assert await store.stand_ins("another") == {}
