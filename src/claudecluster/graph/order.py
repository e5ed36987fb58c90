"""In which order do tasks run? Called by the engine for its queues and by `plan` to show it.

Everything here takes a sound plan (`graph.check.verify`) and walks it without recursion: 10,000 tasks are fine.
"""

import heapq
from collections.abc import Mapping

from claudecluster.model.run import TaskState
from claudecluster.model.task import Plan, Priority

RANK = {Priority.CRITICAL: 0, Priority.HIGH: 1, Priority.MEDIUM: 2, Priority.LOW: 3}


def topological(plan: Plan) -> list[str]:
    """Return the ids so that every task comes after its needs; file order decides among equals. Ids in a circle are left out."""
    place = {task.id: number for number, task in enumerate(plan.tasks)}
    waiting = {task.id: len(set(task.needs)) for task in plan.tasks}
    needed_by = dependents(plan)
    free = [place[name] for name, count in waiting.items() if not count]
    order = []
    while free:
        name = plan.tasks[heapq.heappop(free)].id
        order.append(name)
        for dependent in needed_by[name]:
            waiting[dependent] -= 1
            if not waiting[dependent]:
                heapq.heappush(free, place[dependent])
    return order


def dependents(plan: Plan) -> dict[str, list[str]]:
    """Return who needs each task, in file order."""
    needed_by: dict[str, list[str]] = {task.id: [] for task in plan.tasks}
    for task in plan.tasks:
        for need in dict.fromkeys(task.needs):
            needed_by[need].append(task.id)
    return needed_by


def ready(plan: Plan, states: Mapping[str, TaskState]) -> list[str]:
    """Return the pending tasks all of whose needs are done, in file order. A task without a state is pending."""
    done = {name for name, state in states.items() if state is TaskState.DONE}
    pending = [task for task in plan.tasks if states.get(task.id, TaskState.PENDING) is TaskState.PENDING]
    return [task.id for task in pending if done.issuperset(task.needs)]


def blocked(plan: Plan, states: Mapping[str, TaskState]) -> dict[str, str]:
    """Return the pending tasks that can never start, each with the task that is the cause, however far back it stands."""
    cause = {name: name for name, state in states.items() if state.over and state is not TaskState.DONE}
    needs = {task.id: task.needs for task in plan.tasks}
    found = {}
    for name in topological(plan):
        if states.get(name, TaskState.PENDING) is not TaskState.PENDING:
            continue
        behind = next((cause[need] for need in needs[name] if need in cause), None)
        if behind is not None:
            cause[name] = found[name] = behind
    return found


def remaining(plan: Plan, weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the weight of the longest way from each task to an end, itself included. A task without a weight weighs 1."""
    weigh = weights or {}
    longest: dict[str, float] = {}
    needed_by = dependents(plan)
    for name in reversed(topological(plan)):
        longest[name] = weigh.get(name, 1.0) + max((longest[dependent] for dependent in needed_by[name]), default=0.0)
    return longest


def critical_path(plan: Plan, weights: Mapping[str, float] | None = None) -> list[str]:
    """Return the heaviest chain of needs, first task first: no number of workers makes the run shorter than this."""
    longest = remaining(plan, weights)
    needed_by = dependents(plan)
    path: list[str] = []
    choices = [task.id for task in plan.tasks]
    while choices:
        path.append(max(choices, key=longest.__getitem__))  # the first of equals: file order
        choices = needed_by[path[-1]]
    return path


def priority(plan: Plan, weights: Mapping[str, float] | None = None) -> dict[str, int]:
    """Return each task's place in a queue, 1 first.

    The user's priority decides, then the longest remaining way, then file order. A task is as urgent as the most
    urgent one that waits for it.
    """
    longest = remaining(plan, weights)
    needed_by = dependents(plan)
    urgency = {task.id: RANK[task.priority] for task in plan.tasks}
    for name in reversed(topological(plan)):
        urgency[name] = min([urgency[name], *(urgency[dependent] for dependent in needed_by[name])])
    queue = sorted((task.id for task in plan.tasks), key=lambda name: (urgency[name], -longest[name]))  # stable: file order
    return {name: place for place, name in enumerate(queue, start=1)}
