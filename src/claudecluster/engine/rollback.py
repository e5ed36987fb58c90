"""Taking landings back: a run of its own, whose tasks revert commits, newest first, through the same gates and the same lane."""

from claudecluster.engine.orders import order_of
from claudecluster.engine.parts import Parts
from claudecluster.engine.steps.attempt import REVERT
from claudecluster.model.errors import Refused
from claudecluster.model.order import Order
from claudecluster.model.task import Plan, Task


async def rollback_order(parts: Parts, run: str, task: str) -> Order:
    """Return the order that reverts a run's landings, or one task's. Raises NotFound, and Refused if there is nothing to take back."""
    record = await parts.store.run(run)
    if task:
        await parts.store.task(run, task)
    landed = await _landings(parts, run)
    wanted = [entry for entry in landed if task in {"", entry[0]}]
    if not wanted:
        name = f"task {task} of run {run}" if task else f"run {run}"
        raise Refused(f"{name} has landed nothing", hint=f"claudecluster status {run}")
    if not record.published:
        raise Refused(f"run {run} has not been published yet", hint=f"claudecluster resume {run}")
    order = order_of(record.spec)
    tasks: list[Task] = []
    for name, commit, parent in reversed(wanted):
        needs = (tasks[-1].id,) if tasks else ()
        subject = f"Roll back {name} of run {run}"
        tasks.append(Task(f"revert-{name}"[:64].rstrip("-"), subject, f"{commit} {parent}", needs=needs, agent=REVERT, max_attempts=1))
    # only the gates of the whole run: a task's own gate asks for just what is taken back
    plan = Plan(
        tuple(tasks), goal=f"Roll back {task or 'run'} {run}", setup=order.plan.setup, share=order.plan.share, gates=order.plan.gates
    )
    branch = record.branch
    return Order(plan, record.repo, f"refs/heads/{branch}", branch, order.sandbox, order.network, order.workers)


async def _landings(parts: Parts, run: str) -> list[tuple[str, str, str]]:
    """Return (task, commit, parent) of what landed, oldest first."""
    found: list[tuple[str, str, str]] = []
    after = 0
    while events := await parts.store.events(run, after):
        found += [
            (event.task, str(event.data["commit"]), str(event.data["head_before"])) for event in events if event.kind == "task.landed"
        ]
        after = events[-1].seq
    return found
