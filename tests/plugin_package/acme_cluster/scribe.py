"""An agent that writes what it is asked into a file named after the task. No model, no tools."""

from claudecluster.model.evidence import Outcome, Report
from claudecluster.model.place import Command
from claudecluster.ports.agent import Brief, Hear, Heard
from claudecluster.ports.sandbox import Sandbox


class Scribe:
    """Writes `<task>.txt`: the prompt, and the name of the room it was written in."""

    name = "acme-scribe"
    needs_model = False

    async def check(self) -> None:
        """Return: pen and paper are in every room."""

    async def run(self, brief: Brief, sandbox: Sandbox, hear: Hear) -> Report:
        """Write it down."""
        async with sandbox.start(Command(("sh", "-c", 'printf %s "$ACME_ROOM"'))) as process:
            room = b"".join([line.data async for line in process.lines()]).decode()
            ended = await process.wait()
        await sandbox.write(f"{brief.task.id}.txt", f"{brief.task.prompt}\nwritten in {room or 'no room'}\n".encode())
        hear(Heard("text", f"wrote {brief.task.id}.txt in {room}"))
        return Report(Outcome.FINISHED, text="written", session=brief.session, exit_code=ended.code)
