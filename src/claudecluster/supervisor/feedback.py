"""What a coding agent is told before its next try: facts first, then what to do. Bounded in size, whatever a gate printed.

Called by the policy, and by the engine where it resumes a session. It decides nothing.
"""

import re
from collections.abc import Sequence

from claudecluster.model.evidence import Finding, Outcome, Report
from claudecluster.model.run import GateRun

LIMIT = 4000  # characters of output shown: enough for a traceback, small beside a prompt
FILES = 50  # paths shown
CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
ENDED = {
    Outcome.FAILED: "ended with an error",
    Outcome.STALLED: "stopped making progress and was ended",
    Outcome.TIMED_OUT: "ran out of time and was ended",
}


def gate_failed(gate: GateRun, limit: int = LIMIT) -> str:
    """Say which gate failed, how, and what it printed last."""
    return (
        f"Your change was not accepted: the gate {gate.name!r} failed. It runs this command at the root of the repository, on exactly what you leave behind:\n\n"
        f"    {_indented(gate.command)}\n\n"
        f"{_exit(gate)}{_output(gate.output, limit)}\n\n"
        "Find the cause and fix it in the code. Do not weaken, skip or delete the check. All your files are as you left them."
    )


def agent_failed(report: Report, limit: int = LIMIT) -> str:
    """Say how the attempt before ended, and that its files are still there."""
    code = f" (exit code {report.exit_code})" if report.exit_code is not None else ""
    error = report.error or report.text
    return (
        f"The attempt before this one {ENDED.get(report.outcome, 'ended')}{code} before the task was done.{_output(error, limit)}\n\n"
        "All your files are as you left them. Look at what is there already, avoid what went wrong, and finish the task."
    )


def nothing_changed() -> str:
    """Say that nothing was written."""
    return (
        "You finished, but no file in the repository differs from where you started (ignored files do not count). "
        "The task asks for a change. Make it in the working folder; do not only describe it."
    )


def findings_failed(findings: Sequence[Finding], limit: int = LIMIT) -> str:
    """Say which checks objected and why."""
    share = max(limit // max(len(findings), 1), 80)
    reasons = "\n".join(f"- {finding.check}: {tail(finding.why, share) or 'no reason given'}" for finding in findings)
    return f"Your change was not accepted. These checks object:\n\n{reasons}\n\nMend each of them. All your files are as you left them."


def conflicted(files: Sequence[str]) -> str:
    """Say which files hold conflict markers now: the workspace was put on the new base, with both sides merged."""
    return (
        "Others changed the same places while you worked, and your change does not merge by itself. Your working folder now holds both, "
        f"on the newest base, with conflict markers (<<<<<<<, =======, >>>>>>>) in:\n\n{paths(files)}\n\n"
        "Resolve every conflict so that both intentions are kept, remove all markers, and see that everything still works together."
    )


def red_tree(gate: GateRun, limit: int = LIMIT) -> str:
    """Say that the merge was clean but the gate failed on it: the workspace was put on the new base."""
    return (
        f"Your change merged without conflict into what others landed meanwhile, but together they fail the gate {gate.name!r}. "
        "Your working folder now holds both, on the newest base. The gate runs this command at the root of the repository:\n\n"
        f"    {_indented(gate.command)}\n\n"
        f"{_exit(gate)}{_output(gate.output, limit)}\n\n"
        "Make your change work together with theirs. Do not undo theirs, and do not weaken, skip or delete the check."
    )


def resumed() -> str:
    """Say that the session was interrupted from outside and goes on where it stood."""
    return (
        "You were interrupted from outside: this was no fault of yours. Your files are as you left them; a command that was running has been stopped "
        "and may be half done. Check where you stand, then go on with the task until it is done."
    )


def paths(files: Sequence[str], most: int = FILES) -> str:
    """Return a list of paths, one a line, cut after `most`."""
    shown = [f"- {file}" for file in files[:most]]
    if len(files) > most:
        shown.append(f"- and {len(files) - most} more")
    return "\n".join(shown)


def tail(text: str, limit: int = LIMIT) -> str:
    """Return the last `limit` characters at most, on a line's start where one is near, without terminal controls."""
    clean = CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    if len(clean) <= limit:
        return clean
    note = "[...]\n"
    end = clean[-max(limit - len(note), 0) :] if limit > len(note) else ""
    newline = end.find("\n")
    if 0 <= newline < len(end) // 4:
        end = end[newline + 1 :]
    return note + end


def _exit(gate: GateRun) -> str:
    if gate.reason:
        return f"It ended with exit code {gate.exit_code} ({gate.reason}) after {gate.duration:.1f} s."
    return f"It ended with exit code {gate.exit_code} after {gate.duration:.1f} s."


def _output(text: str, limit: int) -> str:
    end = tail(text, limit)
    if not end:
        return " It printed nothing."
    longest = max((len(run) for run in re.findall(r"`{3,}", end)), default=2)
    fence = "`" * (longest + 1)  # whatever was printed cannot close it
    return f" The end of what it printed:\n\n{fence}\n{end}\n{fence}"


def _indented(command: str) -> str:
    return tail(command, LIMIT // 2).replace("\n", "\n    ")
