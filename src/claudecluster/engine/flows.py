"""The workflows: a run starts its tasks as they become ready, a task goes from attempt to attempt until it lands, ends or asks.

Workflow code is replayed after a crash, so it decides only from its inputs and from the results of steps. Everything that
touches the world is a step. All start at once in the process that serves the run, and after its death are taken over through the
run's control queue; what is scarce (workers, judges, the landing lane) is waited for inside or between steps, in memory.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, assert_never

from claudecluster.engine import durable
from claudecluster.engine.lane import Lane
from claudecluster.engine.orders import ERRAND, INTENT, VERDICT, WORKED, Data, Errand, Verdict, pack
from claudecluster.engine.steps.attempt import Attempts
from claudecluster.engine.steps.landing import Landings
from claudecluster.engine.steps.progress import Progress
from claudecluster.model.errors import ClusterError
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


def control(run: str) -> str:
    """Return the queue through which a run's workflows are taken over."""
    return f"control-{run}"


def run_workflow(run: str) -> str:
    """Return the id of a run's workflow."""
    return f"{run}"


def task_workflow(run: str, task: str) -> str:
    """Return the id of a task's workflow."""
    return f"{run}:{task}"


@dataclass(frozen=True, slots=True)
class Course:
    """Where a task's workflow stands, with its `troubles` in a row and its `bounces` so far."""

    errand: Errand
    troubles: int = 0
    bounces: int = 0

    def next(self, errand: Errand, spent: int | None = None) -> "Course":
        """Return the course after an attempt that was judged. `spent` keeps the count where the attempt was not at fault."""
        counted = errand if spent is None else replace(errand, spent=spent)
        return replace(self, errand=counted, troubles=0)


class Flows:
    """The workflows of one process."""

    def __init__(self, attempts: Attempts, landings: Landings, progress: Progress) -> None:
        self._attempts = attempts
        self._landings = landings
        self._progress = progress
        self.settled = progress.settled
        self.woken = asyncio.Event()  # set when a task's state may let others start
        self._lane = Lane()
        self.closing = asyncio.Event()
        self.trouble: ClusterError | None = None  # why this process cannot go on with the run; the next one may
        self._stops: dict[str, asyncio.Event] = defaultdict(asyncio.Event)  # set for tasks that are to be cancelled

    def named(self) -> dict[str, durable.Flow]:
        """Return the workflows under the names that the database knows them by. Plain functions: methods cannot be registered."""

        async def run_flow(run: str) -> None:
            try:
                await self.run(run)
            except Exception as error:  # noqa: BLE001 - a defect of ours ends the run and says so; it must not hang it
                await self._step("broken", self._progress.finish, run, _defect(error))

        async def task_flow(errand: Data) -> None:
            try:
                await self.task(errand)
            except Exception as error:  # noqa: BLE001 - the same for a task: the others go on
                run, task = str(errand["run"]), str(errand["task"])
                await self._step("broken", self._progress.close, run, task, TaskState.FAILED.value, _defect(error), True)
                self.woken.set()

        self._flows: dict[str, durable.Flow] = {"run": run_flow, "task": task_flow}
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
            for errand in turn["start"]:
                started.add(errand["task"])
                await durable.begin(task_workflow(run, errand["task"]), self._flows["task"], errand)
            if turn["over"]:
                break
            if self._progress.turns == before:
                continue  # a turn of the past, played again: what it waited for has happened
            with contextlib.suppress(TimeoutError):  # waiting is no part of the history: the next turn looks at the store
                await asyncio.wait_for(self.woken.wait(), IDLE)
            self.woken.clear()
        while not await self._step("finish", self._progress.finish, run, problem):
            await durable.receive(GO_ON, PATIENCE)

    async def task(self, errand: Data) -> None:
        """Go from attempt to attempt until the task is over."""
        course: Course | None = Course(ERRAND.validate_python(errand))
        while course is not None:
            course = await self._turn(course)
        self.woken.set()
        await self._progress.clean(str(errand["run"]), str(errand["task"]))  # no step: what a crash leaves is swept when the run ends

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
        task, order = course.errand.task, pack(ERRAND, course.errand)
        worked = await self._step("work", self._attempts.work, order, stop=task)
        if worked is None:
            return None
        came = WORKED.validate_python(worked)
        if came.report is None:
            why = f"{came.trouble} ({came.hint})" if came.hint else came.trouble
            return pack(VERDICT, Verdict("trouble", why, delay=came.delay, refused=came.refused))
        waits = iter(RETRIES)
        while True:  # what goes wrong here is tried again: the agent's work is done
            judged: Data | None = await self._step("judge", self._attempts.judge, order, worked, stop=task)
            if judged is None or judged["kind"] != "trouble":
                return judged
            wait = next(waits, None)
            if wait is None:
                return {**judged, "final": True}
            await self._pause(task, wait)

    async def _land(self, course: Course, verdict: Data) -> Course | None:
        """Send an accepted attempt through the landing lane."""
        errand = course.errand
        data = await self._landed(errand, verdict)
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

    async def _landed(self, errand: Errand, verdict: Data) -> Data | None:
        """Stand in the merge queue: prepare, land when the turn comes, again if the branch is not what it was prepared for. None: cancelled."""
        where = (errand.run, errand.task)
        with self._lane.enter() as slot:
            while True:
                onto = await slot.onto()
                async with slot.testing():
                    prepare = (self._landings.prepare, *where, errand.base, verdict, onto, slot.plan)
                    intent: Data | None = await self._step("intend", *prepare, stop=errand.task)
                if intent is None or intent["trouble"]:
                    return intent
                slot.plan("" if intent["bounce"] or intent["nothing"] else str(intent["commit"]))  # one that was prepared before a crash
                await slot.turn()
                if await self._step("land", self._landings.land, *where, intent):  # never stopped: it is done or it is not
                    return intent
                slot.again()

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
        await self._pause(errand.task, delay)
        return replace(course, troubles=times)

    async def _close(self, course: Course, state: TaskState, error: str, infrastructure: bool = False) -> Course | None:
        await self._step("close", self._progress.close, course.errand.run, course.errand.task, state.value, error, infrastructure)
        return None

    async def _pause(self, task: str, seconds: float) -> None:
        """Wait, also across restarts, unless the task is cancelled; what comes next finds that out."""
        until = await self._step("until", self._progress.until, seconds)
        await self._step("pause", self._progress.pause, until, stop=task)

    def cancel(self, task: str) -> None:
        """Stop what is under way for a task; its workflow then closes it. A landing that has begun to move the branch is not stopped."""
        self._stops[task].set()

    async def _step(self, name: str, action: Callable[..., Coroutine[Any, Any, Any]], *args: object, stop: str = "") -> Any:
        """Run a side effect. One that is given a task to `stop` with ends when that task is cancelled, and returns None."""

        async def fenced(*given: object) -> Any:
            try:
                return await (self._until_stopped(stop, action(*given)) if stop else action(*given))
            except ClusterError as error:  # steps answer for what they expect; this is the store or the repository gone from under us
                self.trouble = error
                self.closing.set()
                self.settled.set()
            finally:
                if self.closing.is_set():  # our agents were stopped by us: record nothing, the next process goes on from here
                    await asyncio.Event().wait()

        return await durable.step(name, fenced, *args)

    async def _until_stopped(self, task: str, action: Coroutine[Any, Any, Any]) -> Any:
        work, stop = asyncio.ensure_future(action), asyncio.ensure_future(self._stops[task].wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
        return None if work.cancelled() else work.result()


def _defect(error: Exception) -> str:
    return f"internal error, please report it: {type(error).__name__}: {error}"
