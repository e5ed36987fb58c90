"""What the store knows of runs and tasks: their states and their records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from claudecluster.model.usage import Usage


class RunState(StrEnum):
    """Where a run stands. `WAITING` needs a person; `INTERRUPTED` can be resumed."""

    RUNNING = "running"
    WAITING = "waiting"
    INTERRUPTED = "interrupted"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self in {RunState.DONE, RunState.FAILED, RunState.CANCELLED}


class TaskState(StrEnum):
    """Where a task stands. Only landing may say `DONE` of a task that changed something."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    LANDING = "landing"
    DONE = "done"
    FAILED = "failed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    BLOCKED = "blocked"

    @property
    def over(self) -> bool:
        """Whether the task will not change any more in this run."""
        return self in {
            TaskState.DONE,
            TaskState.FAILED,
            TaskState.REJECTED,
            TaskState.CANCELLED,
            TaskState.BLOCKED,
        }


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as stored. Times are seconds since the epoch; `spec` is the RunSpec as JSON data."""

    id: str
    state: RunState
    repo: str
    base: str
    branch: str
    head: str
    goal: str
    spec: Mapping[str, object]
    created: float
    ended: float | None = None
    error: str = ""
    published: str = ""
    cancel: bool = False


@dataclass(frozen=True, slots=True)
class GateRun:
    """How one gate went. `exit_code` is None where it could not run (that is not a failure)."""

    name: str
    command: str
    exit_code: int | None
    duration: float
    output: str = ""
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether the gate ran and exited 0."""
        return self.exit_code == 0


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One task of a run as stored. `position` is its place in the task file."""

    run: str
    id: str
    position: int
    state: TaskState
    needs: tuple[str, ...] = ()
    attempts: int = 0
    decision: str = ""
    commit: str = ""
    landed: bool = False
    gates: tuple[GateRun, ...] = ()
    model: str = ""
    session: str = ""
    usage: Usage = field(default_factory=Usage)
    started: float | None = None
    ended: float | None = None
    error: str = ""
    infrastructure: bool = False
    cancel: bool = False


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """One serving process. `born` is the kernel's start time of `pid`, so a reused pid is not mistaken for it."""

    id: str
    run: str
    host: str
    pid: int
    born: str
    seen: float
    dead: bool = False
