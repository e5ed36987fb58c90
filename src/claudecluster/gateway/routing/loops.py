"""A breaker per session against one that runs the same tool for ever because its provider breaks off after each call.

The exchange tells it how each answer ended. Pure, and bounded: sessions that were long not heard of are forgotten.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

MOST = 10_000


@dataclass(slots=True)
class Loops:
    """Counts, per session and provider, answers in a row that broke off. `allowed` of them are borne."""

    allowed: int = 3
    forgiven_after: float = 600.0
    _cuts: OrderedDict[tuple[str, str], tuple[int, float]] = field(default_factory=OrderedDict)

    def cut(self, session: str, provider: str, now: float) -> None:
        """Note that an answer broke off."""
        if not session:
            return
        count, _ = self._cuts.pop((session, provider), (0, now))
        self._cuts[session, provider] = (count + 1, now)
        if len(self._cuts) > MOST:
            self._cuts.popitem(last=False)

    def whole(self, session: str, provider: str) -> None:
        """Note that an answer came to its end."""
        if self._cuts:
            self._cuts.pop((session, provider), None)

    def broken(self, session: str, provider: str, now: float) -> bool:
        """Return whether this session had better not ask this provider now."""
        if not self._cuts:
            return False
        count, at = self._cuts.get((session, provider), (0, now))
        return count >= self.allowed and now < at + self.forgiven_after
