"""From an order to a run in the store: every check first, then one write."""

import os
from dataclasses import replace

from claudecluster.engine.orders import ORDER, pack
from claudecluster.engine.parts import Parts
from claudecluster.engine.steps.attempt import REVERT
from claudecluster.engine.steps.gates import Gates, Site
from claudecluster.graph import check as graph
from claudecluster.kit import processes
from claudecluster.model.errors import Refused, Unavailable
from claudecluster.model.order import Order
from claudecluster.model.run import RunRecord, RunState, TaskRecord, TaskState
from claudecluster.ports.workspace import Hub

PROBE = "probe"  # opens the name of the place where gates are looked for: `probe.<pid>-<born>`, gone with its process


class Submission:
    """Takes orders."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def check(self, order: Order, run: str) -> Order:
        """Return the order with nothing left open. Raises Refused or Unavailable; writes nothing."""
        graph.verify(order.plan)
        await self._workers(order)
        hub = await self._parts.repositories.open(order.repo)
        base = await hub.resolve(order.base or order.plan.base or "HEAD")
        branch = order.branch or f"claudecluster/{run}"
        await hub.check_branch(branch, base)
        order = replace(order, base=base, branch=branch, repo=hub.source)
        await self._gates(hub, order)
        return order

    async def _workers(self, order: Order) -> None:
        """See that everyone who will work can."""
        if order.workers < 1:
            raise Refused(f"{order.workers} workers cannot work", hint="--workers takes a whole number from 1")
        names = {task.agent for task in order.plan.tasks} - {REVERT}
        agents = [self._parts.agent(name) for name in sorted(names)]
        for gate in {gate.check for task in order.plan.tasks for gate in order.plan.gates_of(task) if gate.check}:
            self._parts.check(gate)
        await self._parts.sandboxes.check()
        for agent in agents:
            await agent.check()
        if any(getattr(agent, "needs_model", True) for agent in agents):
            await self._parts.gateway.check()

    async def _gates(self, hub: Hub, order: Order) -> None:
        """See that the gates' programs exist. With set-up commands they may come from there: then the gates will tell."""
        gates = {gate.run: gate for task in order.plan.tasks for gate in order.plan.gates_of(task) if gate.run}
        if order.plan.setup or not gates:
            return
        await self._sweep(hub)
        name = f"{PROBE}.{os.getpid()}-{processes.born(os.getpid())}"
        missing = await Gates(self._parts).missing(hub, order, Site(name, order.base, "", ""), list(gates.values()))
        if missing:
            program = missing[0].run.split()[0]
            raise Unavailable(
                f"gate {missing[0].name!r} cannot run: {program!r} is not found where gates run",
                hint="put its folder on PATH, share a virtual environment (share:), or install it with setup: commands",
            )

    async def _sweep(self, hub: Hub) -> None:
        """Remove probes whose process died while it submitted: no run knows of them."""
        for name in {*await self._parts.sandboxes.names(f"{PROBE}."), *await hub.workspaces(f"{PROBE}.")}:
            pid, _, born = name.removeprefix(f"{PROBE}.").partition("-")
            if processes.born(int(pid)) != born:
                await self._parts.sandboxes.destroy(name)
                await hub.discard(name)
                await hub.discard_home(name)

    async def write(self, order: Order, run: str) -> None:
        """Add the run and its tasks to the store, in one transaction."""
        now = self._parts.clock.now()
        record = RunRecord(
            run, RunState.RUNNING, order.repo, order.base, order.branch, order.base, order.plan.goal, pack(ORDER, order), now
        )
        tasks = [
            TaskRecord(run, task.id, position, TaskState.PENDING, needs=task.needs, model=task.model)
            for position, task in enumerate(order.plan.tasks)
        ]
        await self._parts.store.add_run(record, tasks)
