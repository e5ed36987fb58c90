"""Who looks at an attempt's result before the gates do."""

from typing import Protocol

from claudecluster.model.evidence import Evidence, Finding
from claudecluster.ports.sandbox import Sandbox


class Check(Protocol):
    """Looks at the attempt's tree in a fresh sandbox. Must not raise: what it cannot see is `UNKNOWN`."""

    @property
    def name(self) -> str:
        """The name it is chosen by."""
        ...

    async def look(self, sandbox: Sandbox, evidence: Evidence) -> Finding:
        """Return what was found."""
        ...
