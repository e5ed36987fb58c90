"""Agent `command`: runs the task's own shell command in the sandbox. No model, no session: a retry simply runs it again.

The engine calls it through `ports/agent.py`. What the command means is the user's business; exit code 0 is success.
"""

from collections import deque

from claudecluster.model.evidence import Outcome, Report
from claudecluster.model.place import Command, Exit
from claudecluster.ports.agent import Brief, Hear, Heard
from claudecluster.ports.sandbox import Sandbox

TAIL = 20  # lines of output that explain a failure
LONGEST = 4000  # characters heard of one line
MOST = 16 * 1024 * 1024  # characters heard of one attempt; a command may write without end, the log may not
SHELL = ("sh", "-c", 'if command -v bash >/dev/null 2>&1; then exec bash -c "$0"; else eval "$0"; fi')


class CommandAgent:
    """Runs `task.run` by bash where the sandbox has it, else by sh."""

    continues = False  # a command is not known to bear its own leftovers
    needs_model = False

    @property
    def name(self) -> str:
        """The name it is chosen by."""
        return "command"

    async def check(self) -> None:
        """Return: a shell is in every sandbox."""

    async def run(self, brief: Brief, sandbox: Sandbox, hear: Hear) -> Report:
        """Run the command to its end or the task's timeout, which stops all it started. Raises Unavailable, SandboxLost."""
        task = brief.task
        if not task.run.strip():
            return Report(Outcome.FAILED, error=f"task {task.id} has no `run` for agent command", session=brief.session)
        tail: deque[str] = deque(maxlen=TAIL)
        command = Command((*SHELL, task.run), env={**task.env, **_door(brief, sandbox)}, timeout=task.timeout)
        async with sandbox.start(command) as process:
            heard = 0
            async for line in process.lines():
                text = line.data[: 4 * LONGEST].decode(errors="replace")[:LONGEST]
                tail.append(text)
                if heard <= MOST:
                    heard += len(text) + 1
                    hear(_heard(text, str(line.stream), last=heard > MOST))
            ended = await process.wait()
        return _report(brief, ended, "\n".join(tail).strip())


def _heard(text: str, stream: str, *, last: bool) -> Heard:
    more = f"\n(more than {MOST // 1024**2} MiB of output: what follows is not kept)" if last else ""
    return Heard("output", text + more, {"stream": stream})


def _door(brief: Brief, sandbox: Sandbox) -> dict[str, str]:
    return {name: value.replace("{socket}", sandbox.socket) for name, value in brief.env.items()}


def _report(brief: Brief, ended: Exit, tail: str) -> Report:
    if ended.timed_out:
        error = f"the command was stopped after {brief.task.timeout:.0f} s\n{tail}".strip()
        return Report(Outcome.TIMED_OUT, error=error, session=brief.session, exit_code=ended.code)
    if ended.code != 0:
        error = f"the command ended with exit code {ended.code}\n{tail}".strip()
        return Report(Outcome.FAILED, error=error, session=brief.session, exit_code=ended.code)
    return Report(Outcome.FINISHED, text=tail, session=brief.session, exit_code=0)
