"""The task file's shape, as users write it. `taskfile.py` reads with it; `claudecluster config schema tasks` prints it.

Strict on purpose: a `timeout: yes` is a mistake, not 1 second. Values that need the whole graph are checked in `claudecluster.graph`.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from claudecluster.model.task import Category, Priority

LONGEST = 7 * 86400.0
SHARED = (".venv", "node_modules")


def _said(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return _printable(value)


def _printable(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


def _inside(value: str) -> str:
    parts = value.split("/")
    if value.startswith("/") or ".." in parts or parts[0] == ".git":
        raise ValueError("must be a path inside the repository, without `..`")
    return value


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Text = Annotated[str, AfterValidator(_printable)]
Said = Annotated[str, AfterValidator(_said)]
Inside = Annotated[str, AfterValidator(_said), AfterValidator(_inside)]
TaskId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
Seconds = Annotated[float, Field(gt=0, le=LONGEST, allow_inf_nan=False)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Value = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_printable)]


class Strict(BaseModel):
    """No unknown keys, no guessing at types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class GateEntry(Strict):
    """A shell command that must exit 0 on the tree that lands, or a check by name."""

    name: Annotated[Said, Field(max_length=80, pattern=r"^[^\n]+$")] = Field(description="unique within its list")
    run: Text = Field("", description="shell command")
    check: Text = Field("", description="plug-in check that looks at the attempt instead of a command")
    timeout: Seconds = Field(600.0, description="seconds")


class TaskEntry(Strict):
    """One piece of work for one agent: a `prompt` for a model, or a shell command to `run`."""

    id: TaskId = Field(description="unique; lower-case letters, digits, dashes")
    prompt: Text = Field("", description="what the agent is asked to do")
    run: Text = Field("", description="shell command, for agent `command`")
    needs: list[TaskId] = Field(default_factory=list, description="ids of tasks that must have landed first")
    priority: Priority = Field(Priority.MEDIUM, strict=False, description="how early it starts among ready tasks")
    category: Category = Field(Category.CODE, strict=False, description="kind of work; `analyze` may rightly change nothing")
    agent: Said | None = Field(None, description="agent by name; `command` for `run`, else `claude-code`")
    model: Text = Field("", description="model by name; the configured one unless given")
    files: list[Inside] = Field(default_factory=list, description="glob patterns of what it may touch")
    gates: list[GateEntry] = Field(default_factory=list, description="its own gates; one of the same name replaces the run's")
    timeout: Seconds | None = Field(None, description="seconds one attempt may take; 1800 unless given")
    max_attempts: int | None = Field(None, ge=1, le=100, description="3 unless given")
    env: dict[Variable, Value] = Field(default_factory=dict, description="environment variables for the agent")
    privacy: Literal["any", "local"] = Field("any", description="`local`: no model request leaves your own machines")
    fallback: Literal["auto", "never"] = Field("auto", description="`never`: refuse answers of a lesser model, wait instead")
    budget_usd: float | None = Field(None, gt=0, allow_inf_nan=False, description="USD that all its attempts may cost together")
    budget_tokens: int | None = Field(None, gt=0, description="tokens that all its attempts may use together")


class TaskFile(Strict):
    """A task graph and what all its tasks share."""

    goal: Text = Field("", description="what it is all for")
    base: Text = Field("", description="revision to start from; HEAD unless given")
    setup: list[Said] = Field(
        default=[], description="commands run once per base and lock files, with network; their result lies under every task"
    )
    share: list[Inside] = Field(
        default_factory=lambda: list(SHARED), description="untracked folders of your working copy, visible copy-on-write"
    )
    gates: list[GateEntry] = Field(default_factory=list, description="gates of every task")
    tasks: list[TaskEntry] = Field(min_length=1, description="the graph")


def json_schema() -> dict[str, Any]:
    """Return the task file's JSON schema (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TaskFile.model_json_schema(), "title": "ClaudeCluster task file"}
