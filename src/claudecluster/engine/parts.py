"""What the engine is made of: ports only. `assembly/build.py` fills it in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from claudecluster.kit.clock import Clock
from claudecluster.ports.agent import Agent
from claudecluster.ports.check import Check
from claudecluster.ports.gateway import Gateway
from claudecluster.ports.receipts import Notary
from claudecluster.ports.sandbox import SandboxProvider
from claudecluster.ports.store import Roster, Store
from claudecluster.ports.workspace import Repositories

AgentFinder = Callable[[str], Agent]  # raises Refused for an unknown name
CheckFinder = Callable[[str], Check]


@dataclass(frozen=True, slots=True)
class Parts:
    """The rooms below, as the engine sees them. `engine_url` is the database that DBOS keeps its own tables in."""

    store: Store
    roster: Roster
    repositories: Repositories
    sandboxes: SandboxProvider
    agent: AgentFinder
    check: CheckFinder
    gateway: Gateway
    notary: Notary
    clock: Clock
    engine_url: str
    version: str = "0"
    env: Mapping[str, str] = field(default_factory=dict)
