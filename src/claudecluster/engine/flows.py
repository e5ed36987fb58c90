"""The workflows: a run starts its tasks as they become ready, a task goes from attempt to attempt until it lands, ends or asks.

Workflow code is replayed after a crash, so it decides only from its inputs and from the results of steps. Everything that
touches the world is a step. Only attempts wait in a queue and occupy a worker; all else starts at
once in the serving process, and after its death is taken over through the run's control queue.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from typing import Any, assert_never

from claudecluster.engine import durable
from claudecluster.engine.orders import ERRAND, INTENT, VERDICT, WORKED, Data, Errand, Verdict, pack
from claudecluster.engine.steps.attempt import Attempts
from claudecluster.engine.steps.landing import Landings
from claudecluster.engine.steps.progress import Progress
from claudecluster.model.evidence import Ask, Retry
from claudecluster.model.run import TaskState
from claudecluster.supervisor import policy
from claudecluster.supervisor.judgement import Conflicted, Red

TROUBLES = 5  # infrastructure failures in a row, none of them with a known delay, before a task is given up
PATIENCE = 14 * 86400.0  # seconds a task waits for a person
GO_ON = "go-on"
INBOX = "inbox"
CANCEL = "cancel"
RETRIES = (1.0, 2.0, 4.0)  # seconds before judging is tried again where infrastructure failed
IDLE = 60.0  # seconds after which a run looks at its tasks though nobody woke it
LONGEST_WAIT = 6 * 3600.0
FIRST_LOOK, LAST_LOOK = 0.2, 10.0  # seconds between looks at a child that has not rung: it may have ended before this process began


def control(run: str) -> str:
    """Return the queue of a run's parents."""
    return f"control-{run}"


def pool(run: str) -> str:
    """Return the queue of a run's attempts."""
    return f"pool-{run}"


def run_workflow(run: str) -> str:
    """Return the id of a run's workflow."""
    return f"{run}"


def task_workflow(run: str, task: str) -> str:
    """Return the id of a task's workflow."""
    return f"{run}:{task}"


@dataclass(frozen=True, slots=True)
class Course:
    """Where a task's workflow stands. `tries` numbers its children; `troubles` in a row and `bounces` so far."""

    errand: Errand
    priority: int
    tries: int = 1
    troubles: int = 0
    bounces: int = 0

    def next(self, errand: Errand, spent: int | None = None) -> "Course":
        """Return the course after an attempt that was judged. `spent` keeps the count where the attempt was not at fault."""
        counted = errand if spent is None else replace(errand, spent=spent)
        return replace(self, errand=counted, tries=self.tries + 1, troubles=0)


class Flows:
    """The workflows of one process. `live` knows which child of a task is under way, for cancelling it."""

    def __init__(self, attempts: Attempts, landings: Landings, progress: Progress) -> None:
        self._attempts = attempts
        self._landings = landings
        self._progress = progress
        self.settled = progress.settled
        self.woken = asyncio.Event()  # set when a task's state may let others start
        self._lane = asyncio.Lock()
        self.closing = asyncio.Event()
        self.inherited = False  # whether a dead process began some of the children
        self.live: dict[str, set[str]] = defaultdict(set)
        self.bells: dict[str, asyncio.Event] = {}

    def named(self) -> dict[str, durable.Flow]:
        """Return the workflows under the names that the database knows them by. Plain functions: methods cannot be registered."""

        async def run_flow(run: str) -> None:
            try:
                await self.run(run)
            except Exception as error:  # noqa: BLE001 - a defect of ours ends the run and says so; it must not hang it
                await self._step("broken", self._progress.finish, run, _defect(error))

        async def task_flow(run: str, task: str, priority: int) -> None:
            try:
                await self.task(run, task, priority)
            except Exception as error:  # noqa: BLE001 - the same for a task: the others go on
                await self._step("broken", self._progress.close, run, task, TaskState.FAILED.value, _defect(error), True)
                self.woken.set()

        async def attempt_flow(name: str, errand: Data) -> Data:
            with self._ringing(name):
                return await self.attempt(errand)

        async def judge_flow(name: str, errand: Data, worked: Data) -> Data:
            with self._ringing(name):
                return await self.judge(errand, worked)

        async def landing_flow(name: str, run: str, task: str, base: str, verdict: Data) -> Data:
            with self._ringing(name):
                return await self.landing(run, task, base, verdict)

        self._flows: dict[str, durable.Flow] = {
            "run": run_flow,
            "task": task_flow,
            "attempt": attempt_flow,
            "judge": judge_flow,
            "landing": landing_flow,
        }
        return {f"claudecluster.{name}": flow for name, flow in self._flows.items()}

    async def begin(self, run: str) -> None:
        """Start a run's workflow; one that was begun before stays as it is."""
        await durable.begin(run_workflow(run), self._flows["run"], run)

    async def run(self, run: str) -> None:
        """Start tasks as they become ready, until none is left."""
        problem = await self._step("prepare", self._progress.prepare, run)
        started: set[str] = set()
        while not problem:
            before = self._progress.turns
            turn = await self._step("turn", self._progress.turn, run, sorted(started))
            for task, priority in turn["start"]:
                started.add(task)
                await durable.begin(task_workflow(run, task), self._flows["task"], run, task, priority)
            if turn["over"]:
                break
            if self._progress.turns == before:
                continue  # a turn of the past, played again: what it waited for has happened
            with contextlib.suppress(TimeoutError):  # waiting is no part of the history: the next turn looks at the store
                await asyncio.wait_for(self.woken.wait(), IDLE)
            self.woken.clear()
        while not await self._step("finish", self._progress.finish, run, problem):
            await durable.receive(GO_ON, PATIENCE)

    async def task(self, run: str, task: str, priority: int) -> None:
        """Go from attempt to attempt until the task is over."""
        data = await self._step("brief", self._progress.first, run, task)
        course: Course | None = Course(ERRAND.validate_python(data), priority) if data else None
        while course is not None:
            course = await self._turn(course)
        self.woken.set()
        await self._progress.clean(run, task)  # no step: what a crash leaves is swept when the run ends

    async def attempt(self, errand: Data) -> Data:
        """Let the agent work: the only thing that occupies a worker."""
        return dict(await self._step("work", self._attempts.work, errand, preemptible=True))

    async def judge(self, errand: Data, worked: Data) -> Data:
        """Harvest and judge. What goes wrong here is tried again: the agent's work is done."""
        judged: Data = {}
        for wait in (*RETRIES, 0.0):
            judged = await self._step("judge", self._attempts.judge, errand, worked, preemptible=True)
            if judged["kind"] != "trouble" or not wait:
                break
            await durable.sleep(wait)
        return {**judged, "final": judged["kind"] == "trouble"}

    async def landing(self, run: str, task: str, base: str, verdict: Data) -> Data:
        """Prepare and land, again if the branch moved in between. One landing of a run at a time."""
        async with self._lane:
            while True:
                intent = await self._step("prepare", self._landings.prepare, run, task, base, verdict, preemptible=True)
                if intent["bounce"] or intent["trouble"] or await self._step("land", self._landings.land, run, task, intent):
                    return dict(intent)

    async def _turn(self, course: Course) -> Course | None:  # noqa: PLR0911 - one return per kind of verdict
        """Make one attempt and follow it up. None: the task is over."""
        errand = course.errand
        verdict = await self._attempt(course)
        if verdict is None:
            return await self._close(course, TaskState.CANCELLED, "cancelled")
        found = VERDICT.validate_python(verdict)
        match found.kind:
            case "accept" if found.changes is None or found.changes.empty:
                return await self._close(course, TaskState.DONE, "")
            case "accept":
                return await self._land(course, verdict)
            case "retry" | "escalate":
                data = await self._step("again", self._progress.again, pack(ERRAND, errand), found.feedback, found.model)
                return course.next(ERRAND.validate_python(data))
            case "ask":
                return await self._ask(course, found.feedback or found.why)
            case "reject":
                return await self._close(course, TaskState.FAILED if found.agent_failed else TaskState.REJECTED, found.why)
            case "trouble":
                return await self._trouble(course, found)
            case _:
                assert_never(found.kind)

    async def _attempt(self, course: Course) -> Data | None:
        """Have an attempt made and judged; None if it was cancelled."""
        order = pack(ERRAND, course.errand)
        worked = await self._child(course, "attempt", pool(course.errand.run), order)
        if worked is None:
            return None
        came = WORKED.validate_python(worked)
        if came.report is None:
            why = f"{came.trouble} ({came.hint})" if came.hint else came.trouble
            return pack(VERDICT, Verdict("trouble", why, delay=came.delay, refused=came.refused))
        return await self._child(course, "judge", "", order, worked)

    async def _land(self, course: Course, verdict: Data) -> Course | None:
        """Send an accepted attempt through the landing lane."""
        errand = course.errand
        data = await self._child(course, "landing", "", errand.run, errand.task, errand.base, verdict)
        if data is None:
            return await self._close(course, TaskState.CANCELLED, "cancelled")
        intent = INTENT.validate_python(data)
        if intent.trouble:
            return await self._close(course, TaskState.FAILED, intent.trouble, True)
        if not intent.bounce:
            return None
        times = course.bounces + 1
        bounce = Conflicted(intent.conflicts) if intent.conflicts else Red(next(gate for gate in intent.gates if not gate.passed))
        match policy.after_bounce(bounce, times):
            case Retry(why, text):
                moved = await self._step("rebase", self._progress.rebase, pack(ERRAND, errand), data, why, text)
                return replace(course.next(ERRAND.validate_python(moved), errand.spent), bounces=times)
            case Ask(_, question):
                return await self._ask(replace(course, bounces=0), question)

    async def _ask(self, course: Course, question: str) -> Course | None:
        """Wait for a person, for days if need be; the process may end meanwhile."""
        errand = course.errand
        await self._step("ask", self._progress.ask, errand.run, errand.task, question)
        self.woken.set()
        if await durable.receive(INBOX, PATIENCE) in {None, CANCEL}:
            return await self._close(course, TaskState.CANCELLED, "cancelled")
        data = await self._step("anew", self._progress.anew, pack(ERRAND, errand))
        return course.next(ERRAND.validate_python(data))

    async def _trouble(self, course: Course, verdict: Verdict) -> Course | None:
        """Wait out what is not the agent's fault, and try the same attempt again."""
        errand, times = course.errand, course.troubles + 1
        if verdict.refused:
            return await self._close(course, TaskState.FAILED, verdict.why)
        if verdict.final or (verdict.delay is None and times > TROUBLES):
            return await self._close(course, TaskState.FAILED, verdict.why, True)
        delay = 2.0 ** (times - 1) if verdict.delay is None else min(verdict.delay, LONGEST_WAIT)
        await self._step("trouble", self._progress.trouble, pack(ERRAND, errand), verdict.why, delay)
        await durable.sleep(delay)
        return replace(course, troubles=times, tries=course.tries + 1)

    async def _close(self, course: Course, state: TaskState, error: str, infrastructure: bool = False) -> Course | None:
        await self._step("close", self._progress.close, course.errand.run, course.errand.task, state.value, error, infrastructure)
        return None

    async def _child(self, course: Course, kind: str, queue: str, *args: object) -> Data | None:
        """Run a child workflow, here and now where it needs no queue, and return its result; None if it was cancelled."""
        name = f"{task_workflow(course.errand.run, course.errand.task)}:{course.tries}:{kind}"
        self.live[course.errand.task].add(name)
        try:
            bell = self.bells.setdefault(name, asyncio.Event())
            flow = self._flows[kind]
            if queue:
                handle = await durable.enqueue(queue, name, flow, name, *args, priority=course.priority)
            else:
                handle = await durable.begin(name, flow, name, *args)
            patience = FIRST_LOOK if self.inherited else LAST_LOOK
            while not bell.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(bell.wait(), patience)
                if not bell.is_set() and await durable.ended(name):
                    break
                patience = min(patience * 2, LAST_LOOK)
            found = await durable.result(handle)
        finally:
            self.live[course.errand.task].discard(name)
            self.bells.pop(name, None)
        return dict(found) if found is not None else None

    @contextlib.contextmanager
    def _ringing(self, name: str) -> Iterator[None]:
        """Tell the waiting parent at once that a child has ended: asking the database over and over costs more than the work."""
        try:
            yield
        finally:
            if name in self.bells:
                self.bells[name].set()

    async def cancel(self, task: str) -> None:
        """Cancel what runs for a task."""
        for child in list(self.live[task]):
            await durable.cancel(child)
            if child in self.bells:
                self.bells[child].set()

    async def _step(self, name: str, action: Callable[..., Coroutine[Any, Any, Any]], *args: object, preemptible: bool = False) -> Any:
        async def fenced(*given: object) -> Any:
            try:
                return await action(*given)
            finally:
                if self.closing.is_set():  # our agents were stopped by us: record nothing, the next process goes on from here
                    await asyncio.Event().wait()

        return await durable.step(name, fenced, *args, preemptible=preemptible)


def _defect(error: Exception) -> str:
    return f"internal error, please report it: {type(error).__name__}: {error}"
