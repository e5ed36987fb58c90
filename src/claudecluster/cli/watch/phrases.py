"""Facts as sentences, for progress and logs. Kinds are the engine's; one it does not know is still shown, plainly."""

from collections.abc import Callable, Mapping

from claudecluster.cli.text import span
from claudecluster.model.event import Event

Data = Mapping[str, object]
QUIET = frozenset({"run.advanced", "task.note", "task.started", "run.serving"})  # said better by the facts beside them


def phrase(event: Event) -> str:
    """Return a fact as one line, without its time; empty for one that another fact says better."""
    if event.kind in QUIET:
        return ""
    words = PHRASES.get(event.kind)
    said = words(event.data) if words else _plainly(event)
    attempt = f" (attempt {event.attempt})" if event.attempt > 1 else ""
    return f"{event.task}: {said}{attempt}" if event.task else said


def _plainly(event: Event) -> str:
    details = ", ".join(f"{name} {value}" for name, value in event.data.items() if isinstance(value, str | int | float) and value != "")
    words = event.kind.replace(".", " ").replace("_", " ")
    return f"{words} ({details})" if details else words


def _fixed(text: str) -> Callable[[Data], str]:
    return lambda _: text


def _why(text: str) -> Callable[[Data], str]:
    def words(data: Data) -> str:
        why = str(data.get("why") or data.get("error") or data.get("question") or "")
        return f"{text}: {why}" if why else text

    return words


def _decided(data: Data) -> str:
    gates = data.get("gates")
    ran = ", ".join(_gate(gate) for gate in gates if isinstance(gate, list | tuple)) if isinstance(gates, list | tuple) else ""
    why = f": {data['why']}" if data.get("why") else ""
    return f"{data.get('decision', 'decided')}{why}" + (f" [{ran}]" if ran else "")


def _gate(gate: list[object] | tuple[object, ...]) -> str:
    name, code = str(gate[0]), gate[1]
    took = f" in {span(gate[2])}" if len(gate) > 2 and isinstance(gate[2], int | float) else ""
    how = "could not run" if code is None else "passed" if code == 0 else f"failed with exit code {code}"
    return f"{name} {how}{took}"


def _trouble(data: Data) -> str:
    delay = data.get("delay")
    again = f"; again in {span(delay)}" if isinstance(delay, int | float) and delay else ""
    return f"infrastructure trouble, not counted as an attempt: {data.get('why', '')}{again}"


PHRASES: Mapping[str, Callable[[Data], str]] = {
    "run.created": _fixed("run written down"),
    "run.interrupted": _fixed("run interrupted; its state is kept"),
    "run.waiting": _fixed("run waits for a person"),
    "run.published": _fixed("branch published"),
    "run.unpublished": _why("branch not published"),
    "run.publish-failed": _why("branch not published"),
    "run.done": _fixed("run done"),
    "run.failed": _why("run failed"),
    "run.cancelled": _fixed("run cancelled"),
    "cancel.asked": _fixed("cancel asked for"),
    "setup.ran": lambda data: f"set-up `{data.get('command', '')}` ended with {data.get('exit_code')}",
    "attempt.started": _fixed("started"),
    "attempt.resumed": _fixed("goes on where it stopped"),
    "attempt.decided": _decided,
    "attempt.trouble": _trouble,
    "landing.started": _fixed("landing: merge, then gates on the merged tree"),
    "landing.bounced": _why("sent back from landing"),
    "task.landed": lambda data: f"landed as {str(data.get('commit', ''))[:10]}",
    "task.done": _fixed("done; nothing had to change"),
    "task.failed": _why("failed"),
    "task.rejected": _why("rejected"),
    "task.cancelled": _fixed("cancelled"),
    "task.blocked": _why("blocked"),
    "task.waiting": _why("asks"),
}
