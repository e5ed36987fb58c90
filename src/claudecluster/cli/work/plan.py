"""`plan`: check and show a graph. Reads; runs and writes nothing. `run` reads its task file through here too."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from claudecluster.assembly import plugins
from claudecluster.assembly.paths import place
from claudecluster.assembly.settings import Settings, load
from claudecluster.assembly.taskfile import Wishes
from claudecluster.assembly.taskfile import plan as read_plan
from claudecluster.cli import exits, voice
from claudecluster.cli.loading import load as module
from claudecluster.cli.work.graph import Drawn
from claudecluster.model.task import Plan

Goal = Annotated[str, typer.Argument(show_default=False, help="What to do, in words; or the goal of the task file.")]
Tasks = Annotated[Path | None, typer.Option("--tasks", metavar="FILE", help="Task file, YAML or JSON.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Gates = Annotated[list[str] | None, typer.Option(metavar="CMD", help="Shell command that must exit 0 for every task; may be repeated.")]
Agent = Annotated[str, typer.Option(metavar="NAME", show_default=False, help="Agent for tasks that name none [default: claude-code].")]


def plan(goal: Goal = "", tasks: Tasks = None, gate: Gates = None, agent: Agent = "", as_json: Json = False) -> int:
    """Check a goal or a task file and show its graph. Nothing is run, nothing is written."""
    settings = load(place("").folder).settings
    made = planned(tasks, settings, Wishes(goal, tuple(gate or ()), agent))
    drawn = Drawn(made, _stand_ins(made, settings))
    if as_json:
        voice.as_json(drawn.as_json())
    else:
        voice.data(drawn.as_text())
    for warning in drawn.warnings():
        voice.warn(warning)
    return exits.LANDED


def _stand_ins(made: Plan, settings: Settings) -> dict[str, tuple[str, str]]:
    """Return which local model the user's own table has for each task, and why; nothing without a table."""
    if not settings.models:
        return {}
    access = module("claudecluster.assembly.access")
    found = {task.id: access.stand_in(settings, task) for task in made.tasks if task.prompt}
    return {name: (choice.model, choice.why) for name, choice in found.items()}


def planned(file: Path | None, settings: Settings, wishes: Wishes) -> Plan:
    """Return the checked plan; what neither the task nor the command line says comes from the settings. Raises Refused."""
    filled = replace(
        wishes,
        model=wishes.model or settings.default_model,
        max_attempts=settings.attempts if wishes.max_attempts is None else wishes.max_attempts,
        timeout=settings.timeout if wishes.timeout is None else wishes.timeout,
    )
    made = read_plan(file, filled)
    for name in sorted({*(task.agent for task in made.tasks), *([wishes.agent] if wishes.agent else [])}):
        plugins.known("agents", name)
    for name in sorted({gate.check for task in made.tasks for gate in made.gates_of(task) if gate.check}):
        plugins.known("checks", name)
    return made
