"""A run as the object `--json` prints, as text, and as an exit code: made here and nowhere else.

Keys and codes are the published contract (`docs/reference/cli.md`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from claudecluster.cli import exits
from claudecluster.cli.text import money, span, table
from claudecluster.model.run import RunRecord, RunState, TaskRecord, TaskState
from claudecluster.model.usage import Usage


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run and its tasks as the store has them. `now` (seconds since the epoch) ends what is still going on."""

    run: RunRecord
    tasks: Sequence[TaskRecord]
    now: float
    servers: Sequence[str] | None = None  # who serves it; None where nobody looked
    stand_ins: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # requests of a task that lesser models answered, by model

    def as_json(self) -> dict[str, Any]:
        """Return the published object. `error` is there only where the run itself has one."""
        run = self.run
        return {
            "run": run.id,
            "state": run.state.value,
            "repo": run.repo,
            "base": run.base,
            "branch": run.branch,
            "head": run.head,
            "tasks": [self._task(task) for task in self.tasks],
            "duration_s": self._duration(run.created, run.ended),
        }

    def exit_code(self) -> int:
        """Return the process's exit code for this run."""
        state = self.run.state
        if state is RunState.INTERRUPTED:
            return exits.INTERRUPTED
        if state is RunState.WAITING:
            return exits.PERSON_NEEDED
        if state in {RunState.RUNNING, RunState.DONE}:
            return exits.LANDED
        ended_badly = [task for task in self.tasks if task.state in {TaskState.FAILED, TaskState.REJECTED, TaskState.CANCELLED}]
        if ended_badly and all(task.infrastructure for task in ended_badly):
            return exits.UNAVAILABLE
        return exits.FAILED

    def as_text(self) -> str:
        """Return the run for reading: a heading, a line for each task, and the sum."""
        run = self.run
        total = sum((task.usage for task in self.tasks), Usage())
        lines = [f"run {run.id}  {run.state.value}  {run.goal}".rstrip(), f"  {run.repo}  branch {run.branch} from {run.base[:12]}"]
        lines += [f"  {run.error}"] if run.error else []
        lines += [f"  served by {server}" for server in self.servers or ()]
        lines += [
            "",
            *table(("task", "state", "attempts", "commit", "gates", "time", "cost", "degraded"), [self._row(task) for task in self.tasks]),
            "",
        ]
        landed = sum(task.landed for task in self.tasks)
        done = sum(task.state is TaskState.DONE for task in self.tasks)
        lines.append(
            f"{done} of {len(self.tasks)} tasks done, {landed} landed"
            f" · {span(self._duration(run.created, run.ended))}"
            f" · {total.input_tokens + total.cache_read_input_tokens + total.output_tokens:,} tokens · {money(total.cost_usd)}"
        )
        lines += [f"  {task.id}: {task.error}" for task in self.tasks if task.error and task.state.over]
        lines += [f"  {task.id}: {task.decision}" for task in self.tasks if task.state is TaskState.WAITING]
        lines += [f"  {task.id}: degraded: {self._stood_in(task)}" for task in self.tasks if task.id in self.stand_ins]
        return "\n".join(lines)

    def hints(self) -> list[str]:
        """Return what the user may want to do next."""
        run = self.run
        if run.state is RunState.INTERRUPTED:
            return [f"claudecluster resume {run.id}"]
        if run.state is RunState.WAITING:
            return [f"claudecluster resume {run.id} goes on, once it is settled"]
        if run.state is RunState.RUNNING and self.servers is not None and not self.servers:
            return [f"nobody serves it: claudecluster resume {run.id}"]
        if run.state in {RunState.FAILED, RunState.CANCELLED}:
            return [f"claudecluster logs {run.id}"]
        if run.state is RunState.DONE and run.published:
            return [f"git log {run.branch}"]
        return []

    def _row(self, task: TaskRecord) -> tuple[str, ...]:
        gates = f"{sum(gate.passed for gate in task.gates)}/{len(task.gates)}" if task.gates else ""
        time = span(self._duration(task.started, task.ended)) if task.started is not None else ""
        return (
            task.id,
            task.state.value,
            str(task.attempts),
            task.commit[:10],
            gates,
            time,
            money(task.usage.cost_usd) if task.usage.requests else "",
            f"{sum(self.stand_ins[task.id].values())}/{task.usage.requests}" if task.id in self.stand_ins else "",
        )

    def _stood_in(self, task: TaskRecord) -> str:
        answered = self.stand_ins[task.id]
        return f"{sum(answered.values())} of {task.usage.requests} requests were answered by a fallback model ({', '.join(answered)})"

    def _task(self, task: TaskRecord) -> dict[str, Any]:
        return {
            "id": task.id,
            "state": task.state.value,
            "attempts": task.attempts,
            "decision": task.decision or None,
            "commit": task.commit or None,
            "landed": task.landed,
            "gates": [{"name": gate.name, "exit_code": gate.exit_code, "duration_s": round(gate.duration, 3)} for gate in task.gates],
            "model": task.model or None,
            "cost_usd": float(round(task.usage.cost_usd, 6)),
            "usage": usage_json(task.usage),
            "duration_s": self._duration(task.started, task.ended),
            "error": task.error or None,
        }

    def _duration(self, start: float | None, end: float | None) -> float:
        return 0.0 if start is None else round(max(0.0, (self.now if end is None else end) - start), 3)


def usage_json(usage: Usage) -> dict[str, Any]:
    """Return the number of requests, and token counts under Anthropic's own names."""
    return {
        "requests": usage.requests,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_input_tokens": usage.cache_read_input_tokens,
        "cache_creation_input_tokens": usage.cache_creation_5m_input_tokens + usage.cache_creation_1h_input_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_creation_5m_input_tokens,
            "ephemeral_1h_input_tokens": usage.cache_creation_1h_input_tokens,
        },
    }
