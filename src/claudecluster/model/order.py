"""What a door hands to the engine: one run, fully named, nothing left to the environment."""

from dataclasses import dataclass
from typing import Literal

from claudecluster.model.task import Plan


@dataclass(frozen=True, slots=True)
class Order:
    """A run to be made. `repo` is an absolute path or URL; empty `base` means HEAD, empty `branch` means `claudecluster/<run>`."""

    plan: Plan
    repo: str
    base: str = ""
    branch: str = ""
    sandbox: str = "process"
    network: Literal["none", "full"] = "none"
    workers: int = 4
    budget_usd: float | None = None
