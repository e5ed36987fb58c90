"""What each user has spent in the present day or month, for budgets that start anew.

The gateway adds what is metered; its policy asks before each request. Days and months are those of UTC. Pure.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from claudecluster.model.usage import Metered, Usage

Period = Literal["ever", "month", "day"]


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one user may spend in a period, in USD and tokens of every tier; None leaves it to what holds for everybody."""

    usd: float | None = None
    tokens: int | None = None


@dataclass(slots=True)
class Spending:
    """Sums by user since the present period began."""

    period: Period = "ever"
    _began: float = float("-inf")
    _sums: dict[str, Usage] = field(default_factory=dict)

    def add(self, record: Metered) -> None:
        """Count a record; one of an earlier period, or of nobody, does not count."""
        self._turn(record.at)
        if record.user and record.at >= self._began:
            self._sums[record.user] = self._sums.get(record.user, Usage()) + record.usage

    def of(self, user: str, now: float) -> Usage:
        """Return what a user has spent in this period."""
        self._turn(now)
        return self._sums.get(user, Usage())

    def began(self, now: float) -> float:
        """Return when the period of a moment began (epoch seconds)."""
        if self.period == "ever":
            return float("-inf")
        day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return (day if self.period == "day" else day.replace(day=1)).timestamp()

    def _turn(self, now: float) -> None:
        began = self.began(now)
        if began > self._began:
            self._began = began
            self._sums.clear()
