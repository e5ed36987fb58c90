"""Is a task graph sound? Called before anything is written; a plan that passes can always be run to its end.

It does not look at the repository, the agents or the machine: only at what the plan says.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from claudecluster.model.errors import Refused
from claudecluster.model.task import Gate, Plan, Task

ID = re.compile(r"[a-z0-9-]{1,64}")
COMMAND = "command"  # the one agent that takes a shell command instead of a prompt


def verify(plan: Plan) -> None:
    """Raise Refused, in one line, for the first thing that is wrong with the plan."""
    for problem in problems(plan):
        raise problem


def problems(plan: Plan) -> Iterator[Refused]:
    """Yield what is wrong, most basic first. A cycle is only looked for where the rest is sound."""
    if not plan.tasks:
        yield Refused("the plan has no tasks", hint="give at least one task with an id and a prompt")
        return
    found = False
    for problem in _simple(plan):
        found = True
        yield problem
    if not found and (circle := cycle(plan)):
        yield Refused(f"tasks need each other in a circle: {' -> '.join(circle)}", hint="remove one of these needs")


def cycle(plan: Plan) -> list[str]:
    """Return one circle of needs as `[a, b, a]` (a needs b needs a); empty if there is none. Ids must be known and unique."""
    waiting = {task.id: len(set(task.needs)) for task in plan.tasks}
    needed_by: dict[str, list[str]] = {task.id: [] for task in plan.tasks}
    for task in plan.tasks:
        for need in set(task.needs):
            needed_by[need].append(task.id)
    free = [name for name, count in waiting.items() if not count]
    while free:
        name = free.pop()
        del waiting[name]
        for dependent in needed_by[name]:
            waiting[dependent] -= 1
            if not waiting[dependent]:
                free.append(dependent)
    return _walk(plan, waiting)


def _walk(plan: Plan, stuck: Mapping[str, int]) -> list[str]:
    # Whatever is stuck needs something that is stuck too, so following needs must come round.
    if not stuck:
        return []
    tasks = {task.id: task for task in plan.tasks}
    name = next(iter(stuck))
    seen: dict[str, int] = {}
    path: list[str] = []
    while name not in seen:
        seen[name] = len(path)
        path.append(name)
        name = next(need for need in tasks[name].needs if need in stuck)
    circle = path[seen[name] :]
    position = {task.id: place for place, task in enumerate(plan.tasks)}
    first = circle.index(min(circle, key=position.__getitem__))
    return [*circle[first:], *circle[:first], circle[first]]


def _simple(plan: Plan) -> Iterator[Refused]:
    yield from _gates(plan.gates, "the plan")
    known = Counter(task.id for task in plan.tasks)
    for place, task in enumerate(plan.tasks, start=1):
        if not ID.fullmatch(task.id):
            hint = "an id is 1 to 64 characters of a-z, 0-9 and -"
            yield Refused(f"task {place} has a bad id: {task.id[:80]!r}", hint=hint)
        elif known[task.id] > 1:
            known[task.id] = 1  # say it once
            yield Refused(f"two tasks have the id {task.id!r}", hint="rename one of them")
        yield from _work(task)
        yield from _needs(task, known)
        yield from _gates(task.gates, f"task {task.id!r}")


def _work(task: Task) -> Iterator[Refused]:
    if task.agent == COMMAND and not task.run.strip():
        yield Refused(f"task {task.id!r} has agent {COMMAND!r} but no command", hint="give it `run: ...`")
    elif task.agent != COMMAND and not task.prompt.strip():
        hint = f"set `agent: {COMMAND}`, or give it `prompt: ...`" if task.run.strip() else "give it `prompt: ...`"
        yield Refused(f"task {task.id!r} has no prompt for agent {task.agent!r}", hint=hint)
    if task.max_attempts < 1:
        yield Refused(f"task {task.id!r} may make {task.max_attempts} attempts", hint="max_attempts is 1 or more")
    if not task.timeout > 0:
        yield Refused(f"task {task.id!r} has a timeout of {task.timeout:g} s", hint="a timeout is more than 0 seconds")


def _needs(task: Task, known: Mapping[str, int]) -> Iterator[Refused]:
    for need in dict.fromkeys(task.needs):
        if need == task.id:
            yield Refused(f"task {task.id!r} needs itself", hint="remove that need")
        elif need not in known:
            near = get_close_matches(need, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "add that task, or remove the need"
            yield Refused(f"task {task.id!r} needs {need!r}, which is not a task", hint=hint)


def _gates(gates: tuple[Gate, ...], whose: str) -> Iterator[Refused]:
    for name, count in Counter(gate.name for gate in gates).items():
        if count > 1:
            yield Refused(f"{whose} has {count} gates named {name!r}", hint="a gate's name is unique in its list")
    for gate in gates:
        if not gate.name.strip():
            yield Refused(f"{whose} has a gate without a name", hint="give it `name: ...`")
        if not gate.run.strip() and not gate.check:
            yield Refused(f"gate {gate.name!r} of {whose} has no command", hint="give it `run: ...`")
        if not gate.timeout > 0:
            yield Refused(f"gate {gate.name!r} of {whose} has a timeout of {gate.timeout:g} s", hint="a timeout is more than 0 seconds")
