"""What a user asks for: tasks, their gates, and the plan that holds them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


class Priority(StrEnum):
    """How early a ready task starts among others."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class Category(StrEnum):
    """What kind of work it is. `ANALYZE` may rightly change nothing."""

    CODE = "code"
    TEST = "test"
    REFACTOR = "refactor"
    ANALYZE = "analyze"
    DOCUMENT = "document"


@dataclass(frozen=True, slots=True)
class Gate:
    """A shell command that must exit 0 on the tree that lands. `timeout` in seconds.

    With `check`, the named plug-in check looks at the attempt instead, before any command runs.
    """

    name: str
    run: str = ""
    timeout: float = 600.0
    check: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work for one agent. `prompt` is for a model, `run` for agent `command`.

    `privacy` "local" keeps every model request on the user's own machines; `fallback` "never" refuses answers of a lesser model.
    Budgets are for all its attempts together; None is unlimited.
    """

    id: str
    prompt: str = ""
    run: str = ""
    needs: tuple[str, ...] = ()
    priority: Priority = Priority.MEDIUM
    category: Category = Category.CODE
    agent: str = "claude-code"
    model: str = ""
    files: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    timeout: float = 1800.0
    max_attempts: int = 3
    env: Mapping[str, str] = field(default_factory=dict)
    privacy: Literal["any", "local"] = "any"
    fallback: Literal["auto", "never"] = "auto"
    budget_usd: float | None = None
    budget_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked or unchecked task graph with what all its tasks share."""

    tasks: tuple[Task, ...]
    goal: str = ""
    base: str = ""
    setup: tuple[str, ...] = ()
    share: tuple[str, ...] = (".venv", "node_modules")
    gates: tuple[Gate, ...] = ()

    def gates_of(self, task: Task) -> tuple[Gate, ...]:
        """Return the plan's gates and the task's own; a task's gate replaces the plan's of the same name."""
        named = {gate.name: gate for gate in self.gates} | {gate.name: gate for gate in task.gates}
        return tuple(named.values())
