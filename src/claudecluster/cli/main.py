"""The `claudecluster` command: the list of its commands, each loaded when it is typed.

Called by the console script. `--help` answers without loading any command: names and one-line helps stand here.
"""

import atexit
import contextlib
import os
import sys
import threading
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from claudecluster.cli.exits import BAD_INPUT, guarded
from claudecluster.cli.loading import load

NAME = "claudecluster"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command stands (`module:attribute` below `claudecluster.cli`) and its one-line help."""

    target: str
    help: str


COMMANDS = {
    "run": Entry("work.run:run", "Run a goal or a task file and land what passes its gates."),
    "plan": Entry("work.plan:plan", "Check and show the graph, its order and critical path; nothing is run or written."),
    "status": Entry("show.status:status", "Show a run and its tasks."),
    "runs": Entry("show.status:runs", "List runs, newest first."),
    "logs": Entry("show.logs:logs", "Show what agents and gates said, and what happened."),
    "resume": Entry("work.resume:resume", "Go on with an unfinished run."),
    "cancel": Entry("work.cancel:cancel", "Cancel a run or one of its tasks."),
    "rollback": Entry("work.rollback:rollback", "Land a revert of a run or task, through the same gates; history is kept."),
    "receipt": Entry("show.receipt:app", "Show or verify the signed receipts of what landed."),
    "doctor": Entry("show.doctor:doctor", "Check this machine and say how to mend what is missing."),
    "demo": Entry("work.demo:demo", "Run the first example on a fresh copy of its repository."),
    "config": Entry("show.config:app", "Show the settings and where each came from; print schemas."),
    "gateway": Entry("models.gateway:gateway", "Serve the Anthropic-compatible gateway by itself."),
    "usage": Entry("models.usage:usage", "Show limits, tokens and cost."),
    "fallback": Entry("models.fallback:app", "Show or switch the fallback to local models."),
    "models": Entry("models.models:models", "Show the model routes and whether each answers."),
}


class LazyGroup(TyperGroup):
    """Commands that are imported only when they are typed."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - Typer's signature
        """Return the names, in the order of a user's work."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - Typer's signature
        """Load one command; None if there is none of that name."""
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else built(cmd_name, entry)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - Typer's signature
        """Write the list for `--help`."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


def built(name: str, entry: Entry) -> Any:
    """Return the command object of an entry."""
    module, _, attribute = entry.target.partition(":")
    found = getattr(load(f"claudecluster.cli.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name)(found)
        found = single
    command = typer.main.get_command(found)
    command.name = name
    return command


app = typer.Typer(cls=LazyGroup, add_completion=False, rich_markup_mode=None)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{NAME} {load('importlib.metadata').version(NAME)}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def front(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")] = False,  # noqa: ARG001 - its callback answers
) -> None:
    """Run fleets of coding agents on your repository: isolated, verified, durable, never stopped by a rate limit."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(BAD_INPUT)


def main() -> int:
    """Do what was typed and return the exit code."""
    _stand_in_for_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a narrow terminal encoding must not end a run
    command = typer.main.get_command(app)
    return guarded(lambda: command.main(prog_name=NAME, standalone_mode=False))


def entry() -> NoReturn:
    """Be the command: `main`, then end at once. Taking the interpreter apart would take a third of a second after a run."""
    code = main()
    atexit._run_exitfuncs()  # noqa: SLF001 - what the interpreter does first when it ends by itself
    for thread in threading.enumerate():
        if thread.name == "remove":  # files of ours that are on their way out
            thread.join()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _stand_in_for_closed_streams() -> None:
    """Give each of stdin, stdout and stderr that the caller closed the null device, so that no file of ours takes its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - the same
