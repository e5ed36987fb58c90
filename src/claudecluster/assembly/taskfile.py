"""From what a user wrote (a task file, or a goal alone) to a checked `Plan`. Called by the doors; reads, never writes.

Every mistake is one `Refused` line that names file, line and key, with a hint.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from claudecluster.assembly.nearest import nearest, suggestion
from claudecluster.assembly.reading import LARGEST, Document, read
from claudecluster.assembly.schema import LONGEST, GateEntry, TaskEntry, TaskFile
from claudecluster.graph.check import verify
from claudecluster.model.errors import Refused
from claudecluster.model.task import Gate, Plan, Task

COMMAND, DEFAULT = "command", "claude-code"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line adds: gates for all, and values for tasks that do not say."""

    goal: str = ""
    gates: tuple[str, ...] = ()
    agent: str = ""
    model: str = ""
    max_attempts: int | None = None
    timeout: float | None = None


def plan(file: Path | None, wishes: Wishes) -> Plan:
    """Return the checked plan of a task file, or of a goal alone. Raises Refused with file, line and hint."""
    _check(wishes)
    if file is None:
        if not wishes.goal.strip():
            raise Refused("there is nothing to do", hint="give a goal in quotes, or a task file with --tasks")
        made = _of_goal(wishes)
    else:
        document = read(str(file), _bytes(file))
        made = _of_file(document, wishes)
    try:
        verify(made)
    except Refused as error:
        raise Refused(f"{file}: {error.message}" if file else error.message, hint=error.hint) from None
    return made


def _bytes(file: Path) -> bytes:
    try:
        if file.is_dir():
            raise Refused(f"{file} is a folder, not a task file", hint=f"name the file, such as {file / 'tasks.yaml'}")
        with file.open("rb") as source:
            return source.read(LARGEST + 1)  # a device may have no end
    except (FileNotFoundError, NotADirectoryError):
        raise Refused(f"there is no task file {file}", hint="check the path given with --tasks") from None
    except (OSError, ValueError) as error:
        raise Refused(f"task file {file} cannot be read: {getattr(error, 'strerror', error)}", hint="check its permissions") from None


def _check(wishes: Wishes) -> None:
    if wishes.max_attempts is not None and not 1 <= wishes.max_attempts <= 100:
        raise Refused(f"--max-attempts is {wishes.max_attempts}, which is not from 1 to 100", hint="3 is usual")
    if wishes.timeout is not None and not 0 < wishes.timeout <= LONGEST:
        raise Refused(f"--timeout is {wishes.timeout:g} seconds, which is not above 0 and up to {LONGEST:g}", hint="1800 is usual")
    if any(not command.strip() or "\0" in command for command in wishes.gates):
        raise Refused("--gate is empty", hint='give a shell command, such as --gate "pytest -q"')
    if not all(_text(words) for words in (wishes.goal, *wishes.gates)):
        raise Refused("the goal or a gate is not UTF-8 text", hint="give plain text")


def _text(words: str) -> bool:
    return "\0" not in words and not any("\ud800" <= character <= "\udfff" for character in words)  # undecodable bytes of an argument


def _of_goal(wishes: Wishes) -> Plan:
    agent = wishes.agent or DEFAULT
    words = {"run": wishes.goal} if agent == COMMAND else {"prompt": wishes.goal}
    task = Task(id="task", agent=agent, **words, **_defaults(wishes, {}))  # type: ignore[arg-type]
    return Plan(tasks=(task,), goal=wishes.goal, gates=_wished_gates(wishes.gates, ()))


def _of_file(document: Document, wishes: Wishes) -> Plan:
    entry = _entry(document)
    gates = tuple(_gate(gate) for gate in entry.gates)
    return Plan(
        tasks=tuple(_task(document, position, task, wishes) for position, task in enumerate(entry.tasks)),
        goal=wishes.goal or entry.goal,
        base=entry.base,
        setup=tuple(entry.setup),
        share=tuple(entry.share),
        gates=gates + _wished_gates(wishes.gates, gates),
    )


def _entry(document: Document) -> TaskFile:
    if document.data is None:
        raise Refused(f"{document.name} is empty", hint="write at least `tasks:` with one task; see `claudecluster config schema tasks`")
    if not isinstance(document.data, dict):
        kind = _kind(document.data)
        raise Refused(
            f"{document.place(())}: the file must hold keys such as `tasks:`, not {kind}", hint="see `claudecluster config schema tasks`"
        )
    try:
        entry = TaskFile.model_validate(document.data)
    except ValidationError as error:
        raise _refused(document, error) from None
    _sound(document, ("gates",), entry.gates)
    seen: dict[str, int] = {}
    for position, task in enumerate(entry.tasks):
        if task.id in seen:
            first = document.place(("tasks", seen[task.id], "id")).rpartition(" ")[2]
            where = document.place(("tasks", position, "id"))
            raise Refused(f"{where}: task id `{task.id}` is used twice (first on line {first})", hint="give every task its own id")
        seen[task.id] = position
        if task.gates:
            _sound(document, ("tasks", position, "gates"), task.gates)
    _known_needs(document, entry.tasks, seen)
    return entry


def _known_needs(document: Document, tasks: Sequence[TaskEntry], known: Mapping[str, int]) -> None:
    # The graph is checked as a whole later; here the line is still known.
    for position, task in enumerate(tasks):
        for place, need in enumerate(task.needs):
            if need not in known:
                where = document.place(("tasks", position, "needs", place))
                close = nearest(need, known)
                hint = f"did you mean `{close}`?" if close else "add that task, or remove the need"
                raise Refused(f"{where}: task `{task.id}` needs `{need}`, which is not a task", hint=hint)


def _sound(document: Document, path: tuple[str | int, ...], gates: Sequence[GateEntry]) -> None:
    names = [gate.name for gate in gates]
    for position, (name, gate) in enumerate(zip(names, gates, strict=True)):
        if bool(gate.run.strip()) == bool(gate.check):
            why = "has both `run` and `check`" if gate.check else "has no command"
            raise Refused(
                f"{document.place((*path, position))}: gate `{name}` {why}", hint="say what must exit 0 with `run:`, or name a `check:`"
            )
        if name in names[:position]:
            raise Refused(f"{document.place((*path, position, 'name'))}: two gates are named `{name}`", hint="give each gate its own name")


def _task(document: Document, position: int, entry: TaskEntry, wishes: Wishes) -> Task:
    agent = entry.agent or (COMMAND if entry.run else wishes.agent or DEFAULT)
    missing = _missing(agent, entry)
    if missing:
        where = document.place(("tasks", position))
        raise Refused(f"{where}: task `{entry.id}` {missing[0]}", hint=missing[1])
    return Task(
        id=entry.id,
        prompt=entry.prompt,
        run=entry.run,
        needs=tuple(entry.needs),
        priority=entry.priority,
        category=entry.category,
        agent=agent,
        files=tuple(entry.files),
        gates=tuple(_gate(gate) for gate in entry.gates),
        env=dict(entry.env),
        privacy=entry.privacy,
        fallback=entry.fallback,
        budget_usd=entry.budget_usd,
        budget_tokens=entry.budget_tokens,
        **_defaults(wishes, {"model": entry.model, "timeout": entry.timeout, "max_attempts": entry.max_attempts}),
    )


def _missing(agent: str, entry: TaskEntry) -> tuple[str, str] | None:
    if not entry.prompt.strip() and not entry.run.strip():
        return "says nothing to do", "give it a `prompt:` for a model or a shell command with `run:`"
    if agent == COMMAND and not entry.run.strip():
        return "has agent `command` but no command", "say it with `run:`"
    if agent == DEFAULT and not entry.prompt.strip():
        return f"has agent `{DEFAULT}` but no prompt", "say what to do with `prompt:`"
    return None


def _defaults(wishes: Wishes, said: dict[str, Any]) -> dict[str, Any]:
    chosen = {name: said.get(name) or getattr(wishes, name) for name in ("model", "timeout", "max_attempts")}
    return {name: value for name, value in chosen.items() if value}


def _gate(entry: GateEntry) -> Gate:
    return Gate(entry.name, entry.run, entry.timeout, entry.check)


def _wished_gates(commands: Sequence[str], others: Sequence[Gate]) -> tuple[Gate, ...]:
    taken = {gate.name for gate in others}
    made = []
    for number, command in enumerate(commands, 1):
        words = re.sub(r"[^a-z0-9]+", "-", " ".join(command.lower().split()[:2])).strip("-")[:40] or f"gate-{number}"
        name = next(candidate for candidate in (words, *(f"{words}-{n}" for n in range(2, 1 << 20))) if candidate not in taken)
        taken.add(name)
        made.append(Gate(name, command))
    return tuple(made)


def _refused(document: Document, error: ValidationError) -> Refused:
    mistakes = sorted(
        error.errors(include_url=False), key=lambda mistake: mistake["type"] != "extra_forbidden"
    )  # often the cause of others
    first = mistakes[0]
    path = [step for step in first["loc"] if step != "[key]"]
    where, what = document.place(path), _named(document.data, path)
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(path)
        return Refused(f"{where}: unknown key `{path[-1]}`{_inside(document.data, path)}{more}", hint=suggestion(str(path[-1]), known))
    if first["type"] == "missing":
        return Refused(f"{where}: {_missing_key(document.data, path)}{more}", hint="see `claudecluster config schema tasks`")
    return Refused(f"{where}: {what} {_must(first)}{more}", hint=_hint(first))


def _known_keys(path: Sequence[str | int]) -> list[str]:
    model: type[BaseModel] = TaskFile
    if "gates" in path[:-1]:
        model = GateEntry
    elif "tasks" in path[:-1]:
        model = TaskEntry
    return list(model.model_fields)


def _missing_key(data: Any, path: Sequence[str | int]) -> str:
    return f"`{path[-1]}` is missing{_inside(data, path)}"


def _inside(data: Any, path: Sequence[str | int]) -> str:
    if len(path) > 2 and path[0] == "tasks" and isinstance(path[1], int):
        task = data["tasks"][path[1]]
        name = task.get("id") if isinstance(task, dict) else None
        return f" in task `{name}`" if isinstance(name, str) else f" in task number {path[1] + 1}"
    return ""


def _named(data: Any, path: Sequence[str | int]) -> str:
    keys = [step for step in path if isinstance(step, str)]
    if len(path) == 2 and path[0] == "tasks":
        return f"task number {int(path[1]) + 1}"
    item = f"item {path[-1] + 1} of " if isinstance(path[-1], int) else ""
    return f"{item}`{keys[-1]}`{_inside(data, path)}"


def _must(mistake: ErrorDetails) -> str:
    kind, context, given = mistake["type"], mistake.get("ctx", {}), mistake["input"]
    wanted = {
        "string_type": "text",
        "list_type": "a list",
        "float_type": "a number",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "dict_type": "a set of `name: value` pairs",
        "model_type": "a set of `key: value` pairs",
    }.get(kind)
    if wanted:
        return f"must be {wanted}, not {_kind(given)}"
    if kind == "enum":
        return f"must be {context['expected'].replace(chr(39), '')}, not {_short(given)}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_pattern_mismatch":
        return f"is {_short(given)}, which does not fit"
    if kind == "too_short":
        return "must not be an empty list"
    message = mistake["msg"][0].lower() + mistake["msg"][1:]
    return f"is {_short(given)}: {message}"


def _hint(mistake: ErrorDetails) -> str:
    kind = mistake["type"]
    if kind == "string_type" and isinstance(mistake["input"], int | float | bool):
        return "put the value in quotes"
    if kind == "list_type" and isinstance(mistake["input"], str):
        return f"write [{mistake['input'][:40]}]"
    if kind == "string_pattern_mismatch":
        return "ids are lower-case letters, digits and dashes, and start with a letter or digit; variables are letters, digits and _"
    return "see `claudecluster config schema tasks`"


def _kind(value: object) -> str:
    names = {
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "a set of keys",
        type(None): "nothing",
    }
    shown = f" ({_short(value)})" if isinstance(value, str | int | float) else ""
    return names.get(type(value), type(value).__name__) + shown


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
