"""The façade: what doors call. Submit an order, serve a run until it is over or needs a person, roll back.

A process serves one run at a time and only that run's queues, so two terminals share the store and nothing else.
"""

import asyncio
import contextlib
from dataclasses import dataclass

from claudecluster.engine import durable
from claudecluster.engine.flows import CANCEL, GO_ON, INBOX, Flows, control, run_workflow, task_workflow
from claudecluster.engine.parts import Parts
from claudecluster.engine.rollback import rollback_order
from claudecluster.engine.steps.attempt import Attempts
from claudecluster.engine.steps.landing import Landings
from claudecluster.engine.steps.progress import Progress
from claudecluster.engine.steps.scene import Scenes
from claudecluster.engine.submission import Submission
from claudecluster.engine.vigil import Vigil
from claudecluster.model import ids
from claudecluster.model.errors import ClusterError, Conflict, Unavailable
from claudecluster.model.event import Change
from claudecluster.model.order import Order
from claudecluster.model.run import RunRecord, RunState, TaskState

DEAF = 5.0  # seconds between looks at a run that this process serves
LOOK = 0.2  # seconds between looks at a run that another process serves


@dataclass(frozen=True, slots=True)
class Bench:
    """What serves one run in this process."""

    run: str
    flows: Flows
    engine: durable.Durable
    vigil: Vigil


class Cluster:
    """Runs orders. One per process."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._bench: Bench | None = None
        self._vigil: Vigil | None = None

    async def submit(self, order: Order) -> str:
        """Check everything and write the run down; return its id. Raises Refused or Unavailable, and then nothing was written."""
        run = ids.new_run()
        warming = asyncio.create_task(self._warm(run))  # the engine comes up while the order is checked
        try:
            checked = await Submission(self._parts).check(order, run)
        finally:
            await warming
        await Submission(self._parts).write(checked, run)
        return run

    async def _warm(self, run: str) -> "Bench":
        """Start the engine on a run's queue, once."""
        if self._bench is None:
            scenes = Scenes(self._parts)
            flows = Flows(Attempts(self._parts, scenes), Landings(self._parts, scenes), Progress(self._parts, scenes))
            vigil = self._watch(run)
            engine = durable.Durable(self._parts.engine_url, vigil.id)
            self._bench = Bench(run, flows, engine, vigil)
            engine.register(flows.named())
            await engine.start(control(run))
        if self._bench.run != run:
            raise Conflict(f"this process serves run {self._bench.run}", hint=f"claudecluster resume {run}")
        return self._bench

    def _watch(self, run: str) -> Vigil:
        if self._vigil is None:
            self._vigil = Vigil(self._parts.roster, self._parts.clock, run)
        return self._vigil

    async def rollback(self, run: str, task: str = "") -> str:
        """Write down a run that takes back a run's landings, or one task's, and return its id. Raises NotFound, Refused, Conflict."""
        return await self.submit(await rollback_order(self._parts, run, task))

    async def serve(self, run: str) -> RunRecord:
        """Work on a run until it is over or waits for a person; if another process does, watch it, and take over if it dies.

        When cancelled, the run is marked interrupted and can be served again; the caller must then end the process without
        further ado (its agents end with it).
        """
        record = await self._parts.store.run(run)
        while not record.state.over:
            dead = await self._watch(run).take()
            if dead is not None:  # only now: an engine that is up takes work from the run's queues
                return await self._serve(record, await self._warm(run), dead)
            await self._parts.clock.sleep(LOOK)
            record = await self._parts.store.run(run)
            if record.state is RunState.WAITING:
                break
        return record

    async def _serve(self, record: RunRecord, bench: "Bench", dead: list[str]) -> RunRecord:
        parts, run = self._parts, record.id
        try:
            await self._sweep(run)
            await parts.store.change(
                Change(run, "run.serving", set={"state": RunState.RUNNING}, data={"worker": bench.vigil.id}, unless_over=True)
            )
            bench.vigil.keep(lambda: self._obey(run))
            await self._go_on(record)
            await bench.flows.begin(run)
            for worker in dead:
                await bench.engine.take_over(worker, control(run))
                await parts.roster.forget(worker)
            return await self._settled(run, bench.flows)
        except (asyncio.CancelledError, ClusterError):
            bench.flows.closing.set()
            await self._interrupted(run)
            raise
        finally:
            await bench.vigil.leave()

    async def _settled(self, run: str, flows: Flows) -> RunRecord:
        while True:
            with contextlib.suppress(TimeoutError):  # whoever ends the run rings; the store has the last word
                await asyncio.wait_for(flows.settled.wait(), DEAF)
            flows.settled.clear()
            trouble = flows.trouble or (self._vigil.trouble if self._vigil else None)
            if trouble is not None:
                raise Unavailable(trouble.message, hint=trouble.hint or f"claudecluster resume {run}")
            record = await self._parts.store.run(run)
            if record.state.over:
                await self._sweep(run)
            if record.state.over or record.state is RunState.WAITING:
                return record

    async def _go_on(self, record: RunRecord) -> None:
        """Tell tasks that wait for a person to go on: serving the run again is the answer."""
        if record.state is not RunState.WAITING:
            return
        await durable.send(run_workflow(record.id), "continue", GO_ON)
        for task in await self._parts.store.tasks(record.id):
            if task.state is TaskState.WAITING:
                await self._parts.store.change(
                    Change(record.id, "task.continued", task.id, set={"state": TaskState.RUNNING}, unless_over=True)
                )
                await durable.send(task_workflow(record.id, task.id), "continue", INBOX)

    async def _obey(self, run: str) -> None:
        """Carry out cancel requests that others wrote to the store."""
        record = await self._parts.store.run(run)
        for task in await self._parts.store.tasks(run):
            if task.state.over or not (record.cancel or task.cancel) or self._bench is None:
                continue
            match task.state:
                case TaskState.PENDING:  # it may be queued for a worker already
                    self._bench.flows.cancel(task.id)
                    self._bench.flows.woken.set()
                case TaskState.WAITING:
                    await durable.send(task_workflow(run, task.id), CANCEL, INBOX)
                case _:
                    self._bench.flows.cancel(task.id)

    async def _interrupted(self, run: str) -> None:
        with contextlib.suppress(Exception):
            state = {"state": RunState.INTERRUPTED}
            await asyncio.shield(self._parts.store.change(Change(run, "run.interrupted", set=state, unless_over=True)))
            await self._sweep(run)

    async def _sweep(self, run: str) -> None:
        """Remove sandboxes of this run that a dead worker (or this one, when it ends) left."""
        for name in await self._parts.sandboxes.names(f"{run}."):
            await self._parts.sandboxes.destroy(name)

    async def tidy(self, run: str) -> None:
        """Remove what a run left that nobody serves any more: sandboxes, workspaces, homes."""
        await self._sweep(run)
        await Progress(self._parts, Scenes(self._parts)).sweep(run)

    async def close(self) -> None:
        """Stop the engine."""
        if self._bench is not None:
            self._bench.flows.closing.set()
            await self._bench.engine.stop()
