"""What a run's and a task's workflow do to the world: read and write the store, prepare, clean up, publish.

Each method is a step and may run twice. State changes are skipped where the task is over already, so a late writer harms nothing.
"""

import asyncio
import contextlib
from dataclasses import replace

from claudecluster.engine.orders import ERRAND, INTENT, Data, Errand, pack
from claudecluster.engine.parts import Parts
from claudecluster.engine.steps.attempt import REVERT, workspace_name
from claudecluster.engine.steps.scene import Scene, Scenes
from claudecluster.engine.steps.setup import SetUp
from claudecluster.graph import order as graph
from claudecluster.model.errors import ClusterError, NotFound
from claudecluster.model.event import Change
from claudecluster.model.run import RunState, TaskRecord, TaskState
from claudecluster.model.task import Task
from claudecluster.ports.workspace import Hub


class Progress:
    """The side effects of runs and tasks, between attempts and landings."""

    def __init__(self, parts: Parts, scenes: Scenes) -> None:
        self._parts = parts
        self._scenes = scenes
        self.turns = 0  # how many were really made, not played again from the history
        self.settled = asyncio.Event()  # set when the run is over or waits for a person

    async def prepare(self, run: str) -> str:
        """Make the branch's start and the set-up layer. Returns why the run cannot go on, or nothing."""
        try:
            scene = await self._scenes.of(run)
            await self._sweep_others(scene)
            if not await scene.hub.head(scene.head):
                await scene.hub.advance(scene.head, scene.record.base, "")
            await SetUp(self._parts).make(scene)
        except ClusterError as error:
            return f"{error.message} ({error.hint})" if error.hint else error.message
        return ""

    async def turn(self, run: str, started: list[str]) -> dict[str, object]:
        """Return the first errands of the tasks that can start now, and whether all are over. Marks what is blocked or cancelled."""
        self.turns += 1
        scene = await self._scenes.of(run)
        record = await self._parts.store.run(run)
        tasks = await self._parts.store.tasks(run)
        waiting = [task for task in tasks if task.state is TaskState.PENDING and task.id not in set(started)]
        dropped = {task.id: "cancelled" for task in waiting if record.cancel or task.cancel}
        await self._end(run, dropped, TaskState.CANCELLED)
        states = {task.id: TaskState.CANCELLED if task.id in dropped else task.state for task in tasks}
        blocked = graph.blocked(scene.order.plan, states)
        await self._end(run, {task: f"needs {cause}, which did not land" for task, cause in blocked.items()}, TaskState.BLOCKED)
        states |= dict.fromkeys(blocked, TaskState.BLOCKED)
        ready = [task for task in graph.ready(scene.order.plan, states) if task not in set(started)]
        over = all(state.over for state in states.values())
        await self._waiting(run, record.state, [replace(task, state=states[task.id]) for task in tasks], ready)
        head = await scene.hub.head(scene.head) if ready else ""
        first = [Errand(run, task, 1, 1, _text(scene.task(task), scene.order.plan.goal), head) for task in ready]
        return {"start": [pack(ERRAND, errand) for errand in first], "over": over}

    async def _waiting(self, run: str, state: RunState, tasks: list[TaskRecord], ready: list[str]) -> None:
        """Say so when only a person can move the run on."""
        busy = bool(ready) or any(task.state in {TaskState.RUNNING, TaskState.LANDING} for task in tasks)
        asked = [task.id for task in tasks if task.state is TaskState.WAITING]
        if asked and not busy and state is RunState.RUNNING:
            key = f"waiting/{'/'.join(asked)}/{sum(task.attempts for task in tasks)}"
            await self._parts.store.change(Change(run, "run.waiting", set={"state": RunState.WAITING}, data={"tasks": asked}, key=key))
            self.settled.set()

    async def _end(self, run: str, tasks: dict[str, str], state: TaskState) -> None:
        now = self._parts.clock.now()
        changes = [
            Change(run, f"task.{state.value}", task, set={"state": state, "error": why, "ended": now}, key=f"{task}/over", unless_over=True)
            for task, why in tasks.items()
        ]
        if changes:
            await self._parts.store.change(*changes)

    async def until(self, seconds: float) -> float:
        """Return when a wait that begins now is over, in seconds since the epoch."""
        return self._parts.clock.now() + seconds

    async def pause(self, until: float) -> bool:
        """Wait for that moment. Returns True: a wait that was stopped returns nothing."""
        await self._parts.clock.sleep(max(until - self._parts.clock.now(), 0.0))
        return True

    async def again(self, data: Data, text: str, model: str) -> Data:
        """Return the errand after a retry: in place for an agent that continues, from the start for one that cannot."""
        errand = ERRAND.validate_python(data)
        continues = self._continues(await self._scenes.of(errand.run), errand.task)
        after = replace(errand, attempt=errand.attempt + 1, spent=errand.spent + 1, model=model or errand.model)
        return pack(ERRAND, replace(after, text=text, fresh=not continues, resumed=continues))

    async def anew(self, data: Data) -> Data:
        """Return the errand after a person said go on: from the branch's newest state, with all attempts to spend again."""
        errand = ERRAND.validate_python(data)
        scene = await self._scenes.of(errand.run)
        task = scene.task(errand.task)
        head = await scene.hub.head(scene.head)
        fresh = Errand(
            errand.run, errand.task, errand.attempt + 1, 1, task.prompt or task.run, head, resumed=self._continues(scene, task.id)
        )
        return pack(ERRAND, fresh)

    async def rebase(self, data: Data, landing: Data, why: str, text: str) -> Data:
        """Return the errand after landing sent an attempt back: on the newest base, with both sides merged in the tree."""
        errand = ERRAND.validate_python(data)
        intent = INTENT.validate_python(landing)
        scene = await self._scenes.of(errand.run)
        task = scene.task(errand.task)
        number = errand.attempt + 1
        key = f"{task.id}/{errand.attempt}/bounced"
        fact = Change(errand.run, "landing.bounced", task.id, errand.attempt, data={"why": why, "files": list(intent.conflicts)}, key=key)
        await self._parts.store.change(replace(fact, set={"state": TaskState.RUNNING, "decision": f"retry: {why}"}, unless_over=True))
        after = replace(errand, attempt=number, base=intent.head, fresh=True, conflicts=intent.conflicts)
        if not self._continues(scene, task.id):
            return pack(ERRAND, replace(after, at="", text=task.prompt or task.run, resumed=False, conflicts=()))
        at = float(str(await self._parts.store.note(errand.run, f"{key}/at", self._parts.clock.now())))
        mixed = await scene.hub.commit(intent.tree, intent.head, f"{task.id}: merged with what landed meanwhile\n", at=at)
        return pack(ERRAND, replace(after, at=mixed, text=text, resumed=True))

    def _continues(self, scene: Scene, task_id: str) -> bool:
        task: Task = scene.task(task_id)
        return task.agent != REVERT and bool(getattr(self._parts.agent(task.agent), "continues", True))

    async def ask(self, run: str, task: str, question: str) -> None:
        """Note that a person has to decide."""
        attempts = (await self._parts.store.task(run, task)).attempts
        state = {"state": TaskState.WAITING, "decision": f"ask: {question}"}
        change = Change(
            run, "task.waiting", task, attempts, set=state, data={"question": question}, key=f"{task}/{attempts}/ask", unless_over=True
        )
        await self._parts.store.change(change)

    async def trouble(self, data: Data, why: str, delay: float) -> None:
        """Note that infrastructure failed and when it will be tried again."""
        errand = ERRAND.validate_python(data)
        change = Change(errand.run, "attempt.trouble", errand.task, errand.attempt, set={"error": why}, data={"why": why, "delay": delay})
        await self._parts.store.change(replace(change, unless_over=True))

    async def close(self, run: str, task: str, state: str, error: str, infrastructure: bool) -> None:
        """End a task without a landing."""
        now = self._parts.clock.now()
        fields = {"state": TaskState(state), "error": error, "ended": now, "infrastructure": infrastructure}
        await self._parts.store.change(
            Change(run, f"task.{state}", task, set=fields, data={"why": error}, key=f"{task}/over", unless_over=True)
        )

    async def clean(self, run: str, task: str) -> None:
        """Remove a finished task's workspace and home. What the agent made stays in the hub."""
        with contextlib.suppress(ClusterError):
            hub = (await self._scenes.of(run)).hub
            await hub.discard(workspace_name(run, task))
            await hub.discard_home(workspace_name(run, task))

    async def finish(self, run: str, problem: str) -> bool:
        """Publish what landed and end the run. False: it cannot be pushed, and a person has to see why."""
        parts = self._parts
        if problem:
            await self._give_up(run, problem)
        else:
            try:
                await self._publish(await self._scenes.of(run))
            except ClusterError as error:
                why = f"the result is not on branch yet: {error.message}" + (f"; {error.hint}" if error.hint else "")
                await parts.store.change(Change(run, "run.waiting", set={"state": RunState.WAITING, "error": why}, data={"why": why}))
                self.settled.set()
                return False
        await self.sweep(run)
        tasks = await parts.store.tasks(run)
        record = await parts.store.run(run)
        done = all(task.state is TaskState.DONE for task in tasks)
        state = RunState.CANCELLED if record.cancel and not done else RunState.DONE if done and not problem else RunState.FAILED
        fields = {"state": state, "ended": parts.clock.now(), "error": problem}
        await parts.store.change(Change(run, f"run.{state.value}", set=fields, data={"error": problem}, key="over"))
        self.settled.set()
        return True

    async def sweep(self, run: str, known: Hub | None = None) -> None:
        """Remove workspaces that a crash kept from being removed. What was in them is in the hub, or was never judged."""
        try:
            hub = known or (await self._scenes.of(run)).hub
            for name in await hub.workspaces(f"{run}."):
                await hub.discard(name)
                await hub.discard_home(name)
        except ClusterError:  # the repository itself may be what is missing
            return

    async def _sweep_others(self, scene: Scene) -> None:
        """Remove what runs left that died and were then cancelled: nobody served them any more."""
        names = {*await scene.hub.workspaces(""), *await self._parts.sandboxes.names("")}
        for run in {name.partition(".")[0] for name in names} - {scene.run}:
            with contextlib.suppress(NotFound):
                if (await self._parts.store.run(run)).state.over:
                    await self.sweep(run, scene.hub)
                    for name in await self._parts.sandboxes.names(f"{run}."):
                        await self._parts.sandboxes.destroy(name)

    async def _give_up(self, run: str, problem: str) -> None:
        """End every task: the run could not even be prepared."""
        now = self._parts.clock.now()
        fields = {"state": TaskState.FAILED, "error": problem, "ended": now, "infrastructure": True}
        left = [task.id for task in await self._parts.store.tasks(run) if not task.state.over]
        changes = [Change(run, "task.failed", task, set=fields, key=f"{task}/over", unless_over=True) for task in left]
        if changes:
            await self._parts.store.change(*changes)

    async def _publish(self, scene: Scene) -> None:
        head = await scene.hub.head(scene.head)
        if head == scene.record.base:
            return
        await scene.hub.publish(scene.head, scene.record.branch)
        await self._parts.store.change(Change(scene.run, "run.published", set={"published": head, "head": head}, key=f"published/{head}"))


def _text(task: Task, goal: str) -> str:
    """Return what the agent is told first: its own task, and what that is a part of."""
    if not task.prompt or not goal or goal == task.prompt or task.agent == REVERT:
        return task.prompt or task.run
    return f"{task.prompt}\n\nThis is one task of several towards a larger goal; do only this one. The goal: {goal}"
