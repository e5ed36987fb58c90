"""What stands between an agent and a model: one door per attempt."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from claudecluster.model.usage import Metered


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whose requests come through a door, and what they may do. Budgets: None is unlimited."""

    run: str
    task: str
    attempt: int
    model: str = ""
    category: str = ""
    priority: int = 0  # critical path: larger goes first when capacity is short
    privacy: Literal["any", "local"] = "any"
    fallback: Literal["auto", "never"] = "auto"
    budget_usd: float | None = None
    budget_tokens: int | None = None
    files: tuple[str, ...] = ()  # patterns of what the work may touch


@dataclass(frozen=True, slots=True)
class Door:
    """An open door: a Unix socket on the host, and the environment a client of it needs ({socket} is filled in by the caller)."""

    socket: Path
    env: Mapping[str, str] = field(default_factory=dict)


Meter = Callable[[Metered], Awaitable[None]]


class Gateway(Protocol):
    """Serves doors. The real credentials never pass one."""

    async def check(self) -> None:
        """Raise Unavailable, with a hint, if no model could be reached through it as configured."""

    async def delay(self, visitor: Visitor) -> float:
        """Return for how many seconds no model will answer such a visitor because of limits whose end is known; 0 if one may."""

    async def open(self, name: str, visitor: Visitor) -> Door:
        """Open a door under that name, replacing an older one. The token in `env` dies with it. Refused if no model may answer."""

    async def close(self, name: str) -> None:
        """Close the door, cutting its connections and removing its socket. Unknown names are fine."""
        ...
