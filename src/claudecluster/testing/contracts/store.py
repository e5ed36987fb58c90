"""What every `Store` and `Roster` must do.

A few lines make a suite of it:

    class TestMine(StoreContract, FactsContract, RosterContract):
        @pytest.fixture
        async def memory(self, tmp_path): yield Memory(store, roster, clock)

`clock` is a `StoppedClock` that the store was made with. Every test gets an empty store. Needs pytest-asyncio in auto mode.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from claudecluster.model.errors import ClusterError, Conflict, NotFound, Refused
from claudecluster.model.event import Change, Event
from claudecluster.model.run import GateRun, RunRecord, RunState, TaskRecord, TaskState, WorkerRecord
from claudecluster.model.usage import Metered, Usage
from claudecluster.ports.store import Roster, Store

PATIENCE = 30.0  # seconds; a loaded machine is no broken store
RUN = "r0000001"
SPENT = Usage(1, 100, 20, 3000, 40, 5, 0.125)


class StoppedClock:
    """A clock that goes on only when it is told to, or slept on."""

    def __init__(self, at: float = 1_800_000_000.0) -> None:
        self.at = at

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self.at

    def monotonic(self) -> float:
        """Return the same."""
        return self.at

    async def sleep(self, seconds: float) -> None:
        """Let the time pass at once."""
        self.at += seconds
        await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class Memory:
    """What is tested, and the time it lives in."""

    store: Store
    roster: Roster
    clock: StoppedClock


def a_run(run: str = RUN, created: float = 1_800_000_000.0) -> RunRecord:
    """Return a run as it begins."""
    spec = {"tasks": [{"id": "a", "env": {"K": "ü\n"}}], "workers": 4, "budget": None}
    return RunRecord(run, RunState.RUNNING, "/repo", "b" * 40, "claudecluster/x", "", "Mend it", spec, created)


def a_task(name: str, position: int = 0, run: str = RUN) -> TaskRecord:
    """Return a task as it begins."""
    return TaskRecord(run, name, position, TaskState.PENDING, needs=("before", "also"))


async def begun(store: Store, *names: str, run: str = RUN) -> None:
    """Add a run with these tasks."""
    await store.add_run(a_run(run), [a_task(name, place, run) for place, name in enumerate(names or ("a",))])


async def refusal(kind: type[ClusterError], call: Callable[[], Awaitable[object]]) -> ClusterError:
    """Return the error that the call must raise."""
    try:
        await call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


async def heard(store: Store, count: int, after: int = 0) -> list[Event]:
    """Follow the run until so many facts have come."""
    found: list[Event] = []
    async with asyncio.timeout(PATIENCE):
        async for event in store.since(RUN, after):
            found.append(event)
            if len(found) == count:
                break
    return found


class StoreContract:
    """Runs, tasks, notes, logs, usage, receipts."""

    async def test_a_run_comes_back_as_it_went_in(self, memory: Memory) -> None:
        """Every field of a run and of its tasks survives."""
        full = replace(
            a_task("b", 1),
            state=TaskState.DONE,
            attempts=2,
            decision="accept",
            commit="c" * 40,
            landed=True,
            gates=(GateRun("tests", "pytest -q", 0, 1.5, "ok ✓"), GateRun("lint", "ruff", None, 0.0, reason="no ruff")),
            model="m",
            session="s",
            started=1.5,
            ended=2.5,
            error="e",
            infrastructure=True,
            cancel=True,
        )
        run = replace(a_run(), state=RunState.DONE, ended=7.25, error="x", published="p", cancel=True)
        await memory.store.add_run(run, [full, a_task("a", 0)])
        assert await memory.store.run(RUN) == run
        assert await memory.store.tasks(RUN) == [a_task("a", 0), full]
        assert await memory.store.task(RUN, "b") == full

    async def test_an_equal_id_is_a_conflict_and_changes_nothing(self, memory: Memory) -> None:
        """The first run stays."""
        await begun(memory.store, "a", "b")
        await refusal(Conflict, lambda: memory.store.add_run(replace(a_run(), goal="other"), [a_task("c")]))
        assert (await memory.store.run(RUN)).goal == "Mend it"
        assert [task.id for task in await memory.store.tasks(RUN)] == ["a", "b"]
        assert [event.kind for event in await memory.store.events(RUN)] == ["run.created"]

    async def test_the_newest_runs_come_first(self, memory: Memory) -> None:
        """And no more than asked for."""
        for number, created in enumerate((20.0, 30.0, 10.0)):
            await memory.store.add_run(a_run(f"r{number}", created), [])
        assert [run.id for run in await memory.store.runs()] == ["r1", "r0", "r2"]
        assert [run.id for run in await memory.store.runs(limit=2)] == ["r1", "r0"]

    async def test_unknown_ids_are_not_found(self, memory: Memory) -> None:
        """In every method that takes one, written or read."""
        store = memory.store
        calls: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: store.run("r9"),
            lambda: store.tasks("r9"),
            lambda: store.task("r9", "a"),
            lambda: store.change(Change("r9", "x")),
            lambda: store.note("r9", "k", 1),
            lambda: store.events("r9"),
            lambda: anext(store.since("r9", 0)),
            lambda: store.write_log("r9", "a", 1, b"x"),
            lambda: store.read_log("r9", "a"),
            lambda: store.usage("r9"),
            lambda: store.add_receipt("r9", "a", "{}"),
            lambda: store.receipts("r9"),
        )
        for call in calls:
            await refusal(NotFound, call)
        await begun(store)
        await refusal(NotFound, lambda: store.task(RUN, "z"))
        for change in (Change(RUN, "x", "z", set={"attempts": 1}), Change(RUN, "x", "z"), Change(RUN, "x", "z", unless_over=True)):
            await refusal(NotFound, partial(store.change, change))

    async def test_a_note_never_changes(self, memory: Memory) -> None:
        """The first value is what everybody gets, with empty and null values too."""
        await begun(memory.store)
        assert await memory.store.note(RUN, "port", {"n": [1, None, "ü"]}) == {"n": [1, None, "ü"]}
        assert await memory.store.note(RUN, "port", 2) == {"n": [1, None, "ü"]}
        assert await memory.store.note(RUN, "none", None) is None
        assert await memory.store.note(RUN, "none", 1) is None

    async def test_of_many_notes_at_once_one_wins(self, memory: Memory) -> None:
        """And all callers are told the same."""
        await begun(memory.store)
        kept = await asyncio.gather(*(memory.store.note(RUN, "winner", number) for number in range(20)))
        assert len({str(value) for value in kept}) == 1
        assert kept[0] in range(20)

    async def test_a_log_is_read_back_in_order(self, memory: Memory) -> None:
        """Bytes are bytes, small or large, and `after` goes on where a reader stood."""
        await begun(memory.store, "a", "b")
        chunks = [b"one\n", bytes(range(256)) * 400, b"", b"\x00\xff" * 9]
        for attempt, chunk in enumerate(chunks, start=1):
            await memory.store.write_log(RUN, "a", attempt, chunk)
        await memory.store.write_log(RUN, "b", 1, b"other")
        read = await memory.store.read_log(RUN, "a")
        assert [(attempt, data) for _, attempt, data in read] == list(enumerate(chunks, start=1))
        assert await memory.store.read_log(RUN, "a", after=read[1][0]) == read[2:]
        assert await memory.store.read_log(RUN, "a", after=read[-1][0]) == []

    async def test_chunks_written_at_once_are_all_kept(self, memory: Memory) -> None:
        """Each under its own growing id."""
        await begun(memory.store)
        await asyncio.gather(*(memory.store.write_log(RUN, "a", 1, b"%d" % number) for number in range(30)))
        read = await memory.store.read_log(RUN, "a")
        assert sorted(int(data) for _, _, data in read) == list(range(30))
        assert [number for number, _, _ in read] == sorted({number for number, _, _ in read})

    async def test_a_request_counts_once_and_the_last_wins(self, memory: Memory) -> None:
        """Usage is summed by task and by run."""
        await begun(memory.store, "a", "b")
        for key, task, usage in (
            ("m1", "a", replace(SPENT, output_tokens=1)),
            ("m1", "a", SPENT),
            ("m2", "a", SPENT),
            ("m3", "b", SPENT),
        ):
            await memory.store.meter(Metered(key, RUN, task, 1, "anthropic", "m", usage, memory.clock.now()))
        assert (await memory.store.task(RUN, "a")).usage == SPENT + SPENT
        assert [task.usage for task in await memory.store.tasks(RUN)] == [SPENT + SPENT, SPENT]
        assert await memory.store.usage(RUN) == SPENT + SPENT + SPENT

    async def test_a_request_of_no_run_is_metered_too(self, memory: Memory) -> None:
        """A gateway can stand alone."""
        await memory.store.meter(Metered("m1", "", "", 0, "ollama", "m", SPENT, memory.clock.now(), degraded=True))
        await begun(memory.store)
        assert await memory.store.usage(RUN) == Usage()

    async def test_the_first_receipt_stays(self, memory: Memory) -> None:
        """Oldest first, of all tasks or of one."""
        await begun(memory.store, "a", "b")
        for task, receipt in (("b", '{"n":1}'), ("a", '{"n":2}'), ("b", '{"n":3}')):
            await memory.store.add_receipt(RUN, task, receipt)
        assert await memory.store.receipts(RUN) == [("b", '{"n":1}'), ("a", '{"n":2}')]
        assert await memory.store.receipts(RUN, "a") == [("a", '{"n":2}')]
        assert await memory.store.receipts(RUN, "c") == []


class FactsContract:
    """State and facts: one transaction, one order."""

    async def test_state_and_fact_are_written_together(self, memory: Memory) -> None:
        """With the time of the clock, enums and gate runs as they are."""
        await begun(memory.store, "a", "b")
        memory.clock.at += 5
        gates = (GateRun("tests", "pytest", 1, 2.0, "1 failed"),)
        assert await memory.store.change(
            Change(RUN, "task.judged", "a", 2, {"state": TaskState.RUNNING, "attempts": 2, "gates": gates}, {"why": ["x", 1]}),
            Change(RUN, "run.waiting", set={"state": "waiting", "head": "h"}),
        )
        task = await memory.store.task(RUN, "a")
        assert (task.state, task.attempts, task.gates) == (TaskState.RUNNING, 2, gates)
        assert ((await memory.store.run(RUN)).state, (await memory.store.run(RUN)).head) == (RunState.WAITING, "h")
        assert (await memory.store.task(RUN, "b")) == a_task("b", 1)
        first, judged, waiting = await memory.store.events(RUN)
        assert (first.kind, first.run, first.at) == ("run.created", RUN, memory.clock.now() - 5)
        assert judged == Event(judged.seq, RUN, "task.judged", memory.clock.now(), "a", 2, {"why": ["x", 1]})
        assert waiting == Event(waiting.seq, RUN, "run.waiting", memory.clock.now())
        assert first.seq < judged.seq < waiting.seq

    async def test_a_change_that_cannot_be_made_undoes_its_whole_batch(self, memory: Memory) -> None:
        """Nothing half-written."""
        await begun(memory.store)
        good = Change(RUN, "task.started", "a", set={"state": TaskState.RUNNING})
        await refusal(NotFound, lambda: memory.store.change(good, Change(RUN, "x", task="z", set={"attempts": 1})))
        for wrong in (
            Change(RUN, "x", task="a", set={"colour": "red"}),
            Change(RUN, "x", task="a", set={"usage": SPENT}),
            Change(RUN, "x", task="a", set={"id": "b"}),
            Change(RUN, "x", task="a", set={"state": "asleep"}),
            Change(RUN, "x", task="a", set={"state": RunState.INTERRUPTED}),
            Change(RUN, "x", set={"attempts": 1}),
            Change(RUN, "x", data={"x": object()}),
        ):
            await refusal(Refused, partial(memory.store.change, good, wrong))
        assert await memory.store.task(RUN, "a") == a_task("a")
        assert len(await memory.store.events(RUN)) == 1

    async def test_a_key_makes_one_fact(self, memory: Memory) -> None:
        """The state is written again; other runs have their own keys; no key is no key."""
        await begun(memory.store)
        await begun(memory.store, run="r2")
        for attempts in (1, 2):
            assert await memory.store.change(Change(RUN, "task.tried", "a", 1, {"attempts": attempts}, key="a/1"))
        assert await memory.store.change(Change("r2", "task.tried", "a", 1, key="a/1"))
        assert await memory.store.change(Change(RUN, "x", key="twice"), Change(RUN, "x", key="twice"), Change(RUN, "y"), Change(RUN, "y"))
        assert [event.kind for event in await memory.store.events(RUN)] == ["run.created", "task.tried", "x", "y", "y"]
        assert [event.kind for event in await memory.store.events("r2")] == ["run.created", "task.tried"]
        assert (await memory.store.task(RUN, "a")).attempts == 2

    async def test_what_is_over_stays_over_where_asked(self, memory: Memory) -> None:
        """State and fact are skipped, and the answer says so; the rest of the batch is written."""
        await begun(memory.store, "a", "b")
        late = Change(RUN, "task.started", "a", set={"state": TaskState.RUNNING}, unless_over=True)
        assert await memory.store.change(late)
        await memory.store.change(Change(RUN, "task.cancelled", "a", set={"state": TaskState.CANCELLED}))
        assert not await memory.store.change(late, Change(RUN, "task.started", "b", set={"state": TaskState.RUNNING}, unless_over=True))
        assert [task.state for task in await memory.store.tasks(RUN)] == [TaskState.CANCELLED, TaskState.RUNNING]
        kinds = [event.kind for event in await memory.store.events(RUN)]
        assert kinds == ["run.created", "task.started", "task.cancelled", "task.started"]

    async def test_a_run_that_is_over_stays_over_where_asked(self, memory: Memory) -> None:
        """Also within one batch. Its tasks are asked for themselves."""
        await begun(memory.store)
        ends = Change(RUN, "run.cancelled", set={"state": RunState.CANCELLED})
        done = Change(RUN, "run.done", set={"state": RunState.DONE}, unless_over=True)
        assert not await memory.store.change(ends, done)
        assert (await memory.store.run(RUN)).state is RunState.CANCELLED
        assert await memory.store.change(Change(RUN, "task.cancelled", "a", set={"state": TaskState.CANCELLED}, unless_over=True))

    async def test_a_step_that_runs_twice_is_told_the_same(self, memory: Memory) -> None:
        """The change that ended a task, made again with its key, is no refusal and no second fact."""
        await begun(memory.store)
        ends = Change(RUN, "task.done", "a", set={"state": TaskState.DONE}, key="a/done", unless_over=True)
        assert await memory.store.change(ends)
        assert await memory.store.change(ends)
        assert len(await memory.store.events(RUN)) == 2

    async def test_facts_are_read_in_pages(self, memory: Memory) -> None:
        """After a seq, so many, without gaps or repeats."""
        await begun(memory.store)
        await memory.store.change(*(Change(RUN, f"k{number}") for number in range(25)))
        page = await memory.store.events(RUN, limit=10)
        rest = await memory.store.events(RUN, after=page[-1].seq)
        assert [event.kind for event in page + rest] == ["run.created", *(f"k{number}" for number in range(25))]
        assert await memory.store.events(RUN, after=rest[-1].seq) == []

    async def test_a_follower_hears_what_was_and_what_comes(self, memory: Memory) -> None:
        """In order, each once, from where it stands."""
        await begun(memory.store)
        await begun(memory.store, run="r2")
        follower = asyncio.ensure_future(heard(memory.store, 41))
        for number in range(20):
            await memory.store.change(Change(RUN, f"k{number}"), Change("r2", "other"), Change(RUN, "also"))
        events = await follower
        assert events == await memory.store.events(RUN)
        assert await heard(memory.store, 3, after=events[-4].seq) == events[-3:]

    async def test_changes_made_at_once_are_all_heard(self, memory: Memory) -> None:
        """None is passed by because it was committed late."""
        await begun(memory.store)
        follower = asyncio.ensure_future(heard(memory.store, 101))
        await asyncio.gather(*(memory.store.change(Change(RUN, f"k{number}")) for number in range(100)))
        events = await follower
        assert [event.seq for event in events] == sorted({event.seq for event in events})
        assert {event.kind for event in events} == {"run.created", *(f"k{number}" for number in range(100))}

    async def test_output_that_is_not_text_breaks_nothing(self, memory: Memory) -> None:
        """Agents print and name files as they please: NUL, half characters, any script."""
        await begun(memory.store)
        wild = "a\x00b\udce9 \U0001f600 \x1b[1m"
        change = Change(
            RUN, "task.failed", "a", set={"error": wild, "gates": (GateRun("g", "c", 1, 0.0, wild),)}, data={"file": wild, wild: 1}
        )
        assert await memory.store.change(change)
        task = await memory.store.task(RUN, "a")
        for text in (task.error, task.gates[0].output, str((await memory.store.events(RUN))[1].data["file"])):
            assert text.startswith("a")
            assert text.endswith(" \U0001f600 \x1b[1m")
            assert text.encode()


class RosterContract:
    """Workers and leases."""

    async def test_a_worker_is_on_record_while_it_beats(self, memory: Memory) -> None:
        """The last beat counts."""
        worker = WorkerRecord("w1", RUN, "host", 42, "1234", 10.0)
        assert await memory.roster.beat(worker)
        assert await memory.roster.beat(replace(worker, seen=11.0))
        assert await memory.roster.beat(replace(worker, id="w2", run="r2"))
        assert await memory.roster.workers() == [replace(worker, seen=11.0), replace(worker, id="w2", run="r2")]
        assert await memory.roster.workers(RUN) == [replace(worker, seen=11.0)]

    async def test_the_dead_stay_dead(self, memory: Memory) -> None:
        """Also once forgotten, and also if nobody had heard of them. Their leases are free, and not theirs to take again."""
        worker = WorkerRecord("w1", RUN, "host", 42, "1234", 10.0)
        await memory.roster.beat(worker)
        await memory.roster.lease("reaper", "w1", 10)
        await memory.roster.bury("w1")
        assert [await memory.roster.lease("reaper", owner, 10) for owner in ("w1", "w2")] == [False, True]
        assert not await memory.roster.beat(replace(worker, seen=20.0))
        assert await memory.roster.workers() == [replace(worker, dead=True)]
        await memory.roster.forget("w1")
        assert await memory.roster.workers() == []
        assert not await memory.roster.beat(worker)
        await memory.roster.bury("w3")
        assert not await memory.roster.beat(replace(worker, id="w3"))
        assert await memory.roster.workers() == []

    async def test_only_the_dead_are_forgotten(self, memory: Memory) -> None:
        """Unknown names are fine."""
        worker = WorkerRecord("w1", RUN, "host", 42, "1234", 10.0)
        await memory.roster.beat(worker)
        for name in ("w1", "nobody"):
            await memory.roster.forget(name)
        assert await memory.roster.workers() == [worker]

    async def test_a_lease_has_one_holder(self, memory: Memory) -> None:
        """Until it runs out; the holder may renew it."""
        assert await memory.roster.lease("reaper", "w1", 10)
        assert not await memory.roster.lease("reaper", "w2", 10)
        assert await memory.roster.lease("other", "w2", 10)
        memory.clock.at += 9
        assert await memory.roster.lease("reaper", "w1", 10)
        memory.clock.at += 9
        assert not await memory.roster.lease("reaper", "w2", 10)
        memory.clock.at += 2
        assert await memory.roster.lease("reaper", "w2", 10)
        assert not await memory.roster.lease("reaper", "w1", 10)

    async def test_of_many_who_want_a_lease_one_gets_it(self, memory: Memory) -> None:
        """At the same moment."""
        got = await asyncio.gather(*(memory.roster.lease("reaper", f"w{number}", 10) for number in range(10)))
        assert got.count(True) == 1
