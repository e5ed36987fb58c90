"""What a landing can prove: the base, the tree that was tested, its gates, and who did the work."""

from dataclasses import dataclass, field

from claudecluster.model.run import GateRun
from claudecluster.model.usage import Usage


@dataclass(frozen=True, slots=True)
class Receipt:
    """One landing. `head_before` and `commit` are the run's head before and after; `tree` is the merged tree that the gates ran on.

    `at` is seconds since the epoch. `key` is the signing key's fingerprint; whoever signs fills it in.
    """

    run: str
    task: str
    repo: str
    branch: str
    base: str
    head_before: str
    tree: str
    commit: str
    gates: tuple[GateRun, ...]
    agent: str
    models: tuple[str, ...]
    usage: Usage
    attempts: int
    at: float
    version: str
    key: str = field(default="")
