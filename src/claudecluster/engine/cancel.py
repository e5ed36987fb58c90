"""Cancelling, from any terminal: written to the store, carried out by whoever serves the run, or at once if nobody does.

Needs no engine, so the door that calls it starts in no time.
"""

import socket

from claudecluster.engine.vigil import alive
from claudecluster.kit.clock import Clock
from claudecluster.model.errors import Conflict
from claudecluster.model.event import Change
from claudecluster.model.run import RunState, TaskState
from claudecluster.ports.store import Roster, Store


async def served(roster: Roster, run: str, clock: Clock) -> bool:
    """Tell whether a living process serves the run."""
    host = socket.gethostname()
    return any(alive(worker, clock.now(), host) for worker in await roster.workers(run))


async def cancel(store: Store, roster: Roster, run: str, task: str, clock: Clock) -> None:
    """Ask for a run (empty `task`) or a task to be cancelled. Raises NotFound, and Conflict if it is over already."""
    record = await store.run(run)
    found = await store.task(run, task) if task else None
    if found.state.over if found else record.state.over:
        name = f"task {task} of run {run}" if found else f"run {run}"
        state = found.state if found else record.state
        raise Conflict(f"{name} is over already: {state.value}", hint=f"claudecluster status {run}")
    await store.change(Change(run, "cancel.asked", task, set={"cancel": True}, key=f"{task}/cancel.asked"))
    if not await served(roster, run, clock):
        await _finish(store, run, task, clock.now())


async def _finish(store: Store, run: str, task: str, now: float) -> None:
    tasks = [found for found in await store.tasks(run) if not found.state.over and task in {"", found.id}]
    fields = {"state": TaskState.CANCELLED, "error": "cancelled", "ended": now}
    changes = [Change(run, "task.cancelled", found.id, set=fields, key=f"{found.id}/over", unless_over=True) for found in tasks]
    if not task:
        changes.append(Change(run, "run.cancelled", set={"state": RunState.CANCELLED, "ended": now}, key="over", unless_over=True))
    if changes:
        await store.change(*changes)
