"""The façade: what doors call. Submit an order, serve a run until it is over or needs a person, roll back.

A process serves one run at a time and only that run's queues, so two terminals share the store and nothing else.
"""

import asyncio
import contextlib

from claudecluster.engine import durable
from claudecluster.engine.flows import CANCEL, GO_ON, INBOX, WAKE, Flows, control, lane, pool, run_workflow, task_workflow
from claudecluster.engine.parts import Parts
from claudecluster.engine.rollback import rollback_order
from claudecluster.engine.steps.attempt import Attempts
from claudecluster.engine.steps.landing import Landings
from claudecluster.engine.steps.progress import Progress
from claudecluster.engine.steps.scene import Scenes
from claudecluster.engine.submission import Submission
from claudecluster.engine.vigil import Vigil
from claudecluster.model.errors import Conflict
from claudecluster.model.event import Change
from claudecluster.model.order import Order
from claudecluster.model.run import RunRecord, RunState, TaskState

LOOK = 0.2  # seconds between looks at a run that another process serves


class Cluster:
    """Runs orders. One per process."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._flows: Flows | None = None
        self._durable: durable.Durable | None = None

    async def submit(self, order: Order) -> str:
        """Check everything and write the run down; return its id. Raises Refused or Unavailable, and then nothing was written."""
        return await Submission(self._parts).submit(order)

    async def rollback(self, run: str, task: str = "") -> str:
        """Write down a run that takes back a run's landings, or one task's, and return its id. Raises NotFound, Refused, Conflict."""
        return await self.submit(await rollback_order(self._parts, run, task))

    async def serve(self, run: str) -> RunRecord:
        """Work on a run until it is over or waits for a person; if another process does, watch it, and take over if it dies.

        When cancelled, the run is marked interrupted and can be served again; the caller must then end the process without
        further ado (its agents end with it).
        """
        parts = self._parts
        record = await parts.store.run(run)
        vigil = Vigil(parts.roster, parts.clock, run)
        while not record.state.over:
            dead = await vigil.take()
            if dead is not None:
                return await self._serve(record, vigil, dead)
            await parts.clock.sleep(LOOK)
            record = await parts.store.run(run)
            if record.state is RunState.WAITING:
                return record
        return record

    async def _serve(self, record: RunRecord, vigil: Vigil, dead: list[str]) -> RunRecord:
        parts, run = self._parts, record.id
        scenes = Scenes(parts)
        flows = Flows(Attempts(parts, scenes), Landings(parts, scenes), Progress(parts, scenes))
        self._flows = flows
        await self._sweep(run)
        engine = durable.Durable(parts.engine_url, vigil.id)
        self._durable = engine
        engine.register(flows.named())
        try:
            await parts.store.change(
                Change(run, "run.serving", set={"state": RunState.RUNNING}, data={"worker": vigil.id}, unless_over=True)
            )
            order = (await scenes.of(run)).order
            await engine.start({control(run): None, pool(run): order.workers, lane(run): 1})
            vigil.keep(lambda: self._obey(run))
            await flows.begin(run)
            for worker in dead:
                await engine.take_over(worker)
                await parts.roster.forget(worker)
            await self._go_on(record)
            return await self._settled(run)
        except asyncio.CancelledError:
            flows.closing.set()
            await self._interrupted(run)
            raise
        finally:
            await vigil.leave()

    async def _settled(self, run: str) -> RunRecord:
        async for event in self._parts.store.since(run, 0):
            if event.kind.startswith("run."):
                record = await self._parts.store.run(run)
                if record.state.over or record.state is RunState.WAITING:
                    if record.state.over and self._durable is not None:
                        await self._sweep(run)
                    return record
        raise Conflict(f"run {run} vanished from the store")

    async def _go_on(self, record: RunRecord) -> None:
        """Tell tasks that wait for a person to go on: serving the run again is the answer."""
        if record.state is not RunState.WAITING:
            return
        await durable.send(run_workflow(record.id), "continue", GO_ON)
        for task in await self._parts.store.tasks(record.id):
            if task.state is TaskState.WAITING:
                await durable.send(task_workflow(record.id, task.id), "continue", INBOX)

    async def _obey(self, run: str) -> None:
        """Carry out cancel requests that others wrote to the store."""
        record = await self._parts.store.run(run)
        for task in await self._parts.store.tasks(run):
            if task.state.over or not (record.cancel or task.cancel) or self._flows is None:
                continue
            match task.state:
                case TaskState.PENDING:
                    await durable.send(run_workflow(run), task.id, WAKE)
                case TaskState.WAITING:
                    await durable.send(task_workflow(run, task.id), CANCEL, INBOX)
                case _:
                    await self._flows.cancel(task.id)

    async def _interrupted(self, run: str) -> None:
        with contextlib.suppress(Exception):
            state = {"state": RunState.INTERRUPTED}
            await asyncio.shield(self._parts.store.change(Change(run, "run.interrupted", set=state, unless_over=True)))
            await self._sweep(run)

    async def _sweep(self, run: str) -> None:
        """Remove sandboxes of this run that a dead worker (or this one, when it ends) left."""
        for name in await self._parts.sandboxes.names(f"{run}."):
            await self._parts.sandboxes.destroy(name)

    async def close(self) -> None:
        """Stop the engine."""
        if self._flows is not None:
            self._flows.closing.set()
        if self._durable is not None:
            await self._durable.stop()
