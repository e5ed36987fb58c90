"""A plan as `claudecluster plan` shows it: levels, order, critical path, overlapping scopes. Pure; runs nothing."""

from collections.abc import Mapping
from typing import Any

from claudecluster.cli.text import table
from claudecluster.graph.order import critical_path, priority, topological
from claudecluster.graph.overlap import overlaps
from claudecluster.model.task import Plan

SHOWN = 200  # rows of a table a person still reads
OVERLAPS = 20


class Drawn:
    """A sound plan, looked at from all sides once."""

    def __init__(self, plan: Plan, stand_ins: Mapping[str, tuple[str, str]] | None = None) -> None:
        self._plan = plan
        self._stand_ins = stand_ins or {}  # the local model for a task, and why
        self._tasks = {task.id: task for task in plan.tasks}
        self._level: dict[str, int] = {}
        for name in topological(plan):
            self._level[name] = 1 + max((self._level[need] for need in self._tasks[name].needs), default=0)
        place = priority(plan)
        self._order = sorted(self._tasks, key=lambda name: (self._level[name], place[name]))
        self._path = critical_path(plan)
        self._critical = frozenset(self._path)
        self._overlaps = overlaps(plan)

    def as_json(self) -> dict[str, Any]:
        """Return the graph as data: `order` is how tasks start, `levels` what could run at the same time."""
        levels: list[list[str]] = [[] for _ in range(max(self._level.values(), default=0))]
        for name in self._order:
            levels[self._level[name] - 1].append(name)
        return {
            "goal": self._plan.goal,
            "base": self._plan.base,
            "setup": list(self._plan.setup),
            "gates": [gate.name for gate in self._plan.gates],
            "tasks": [self._task(name) for name in self._order],
            "order": self._order,
            "levels": levels,
            "critical_path": self._path,
            "overlaps": [{"tasks": [pair.first, pair.second], "files": list(pair.globs)} for pair in self._overlaps],
        }

    def as_text(self) -> str:
        """Return the graph for reading."""
        heads = ("level", "task", "needs", "priority", "agent", "model", "gates", "files")
        rows = [self._row(name) for name in self._order[:SHOWN]]
        lines = [*([self._plan.goal, ""] if self._plan.goal else []), *table(heads, rows)]
        if len(self._order) > SHOWN:
            lines.append(f"... and {len(self._order) - SHOWN} more (all of them with --json)")
        wide = max((list(self._level.values()).count(level) for level in set(self._level.values())), default=0)
        path = self._path if len(self._path) <= 12 else [*self._path[:5], f"... {len(self._path) - 10} more ...", *self._path[-5:]]
        lines += [
            "",
            f"{len(self._order)} tasks in {max(self._level.values(), default=0)} levels, up to {wide} at the same time",
            f"critical path ({len(self._path)}): {' -> '.join(path)}",
            *(f"local model for {name}: {why}" for name, (_, why) in list(self._stand_ins.items())[:SHOWN]),
        ]
        return "\n".join(lines)

    def warnings(self) -> list[str]:
        """Return what may cost extra attempts."""
        said = [
            f"tasks {pair.first} and {pair.second} may change the same files ({pair.globs[0]} and {pair.globs[1]})"
            for pair in self._overlaps[:OVERLAPS]
        ]
        if len(self._overlaps) > OVERLAPS:
            said.append(f"{len(self._overlaps) - OVERLAPS} more pairs of tasks may change the same files")
        if not any(self._plan.gates_of(task) for task in self._plan.tasks):
            said.append("there are no gates, so nothing is tested before it lands")
        return said

    def _row(self, name: str) -> tuple[str, ...]:
        task = self._tasks[name]
        critical = "*" if name in self._critical else ""
        gates = ", ".join(gate.name for gate in self._plan.gates_of(task))
        level = f"{self._level[name]}{critical}"
        return level, name, ", ".join(task.needs), task.priority.value, task.agent, task.model, gates, ", ".join(task.files)

    def _task(self, name: str) -> dict[str, Any]:
        task = self._tasks[name]
        return {
            "id": name,
            "level": self._level[name],
            "critical": name in self._critical,
            "needs": list(task.needs),
            "priority": task.priority.value,
            "category": task.category.value,
            "agent": task.agent,
            "model": task.model,
            "files": list(task.files),
            "gates": [gate.name for gate in self._plan.gates_of(task)],
            "timeout": task.timeout,
            "max_attempts": task.max_attempts,
            **({"local_model": dict(zip(("model", "why"), self._stand_ins[name], strict=True))} if name in self._stand_ins else {}),
        }
