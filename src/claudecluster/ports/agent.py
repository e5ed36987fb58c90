"""Who does the work inside a sandbox."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from claudecluster.model.evidence import Report
from claudecluster.model.task import Task
from claudecluster.ports.sandbox import Sandbox


@dataclass(frozen=True, slots=True)
class Brief:
    """One attempt's order. `text` is what to do now: the prompt, or feedback on the attempt before.

    `session` was chosen before anything started. With `resumed`, it may exist already, in whole or in part.
    """

    task: Task
    attempt: int
    text: str
    session: str
    resumed: bool = False
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Heard:
    """Something the agent said or did. `kind`: text, tool, result, error, notice, output. `data` is raw JSON data, if any."""

    kind: str
    text: str
    data: Mapping[str, object] = field(default_factory=dict)


Hear = Callable[[Heard], None]


class Agent(Protocol):
    """Does a brief in a sandbox and reports. Its report is a claim; checks and gates decide.

    Two optional attributes, both True unless set: `continues` (a retry goes on in the same workspace and session; else it
    starts again on a fresh tree) and `needs_model` (it wants a door to the gateway).
    """

    @property
    def name(self) -> str:
        """The name it is chosen by."""
        ...

    async def check(self) -> None:
        """Raise Unavailable, with a hint, if this agent cannot work on this machine."""
        ...

    async def run(self, brief: Brief, sandbox: Sandbox, hear: Hear) -> Report:
        """Work until done. Raises Unavailable for passing causes (not a failed attempt) and SandboxLost. Re-entrant: may be called again after a crash."""
        ...
