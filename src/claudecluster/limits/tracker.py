"""Windows we count ourselves, for subscriptions whose server reports none: five hours from the first use, and a week.

The gateway feeds it with what it meters. The limits per tier are community estimates (claude-monitor 4.0: input and output
tokens per five-hour block), so a server's own report always comes first. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from claudecluster.limits.windows import Window

HOURS_5 = 5 * 3600.0
DAYS_7 = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Tier:
    """What a plan allows, in input plus output tokens; None where nobody knows."""

    five_hour: int | None = None
    seven_day: int | None = None


TIERS: Mapping[str, Tier] = {"api": Tier(), "pro": Tier(19_000), "max5": Tier(88_000), "max20": Tier(220_000)}


@dataclass(slots=True)
class _Block:
    name: str
    span: float
    limit: int
    start: float = float("-inf")
    tokens: int = 0

    def add(self, tokens: int, at: float) -> None:
        if at >= self.start + self.span:
            self.start, self.tokens = at, 0
        self.tokens += tokens

    def window(self, now: float) -> Window:
        over = now >= self.start + self.span
        return Window(self.name, 0.0 if over else self.tokens / self.limit, None if over else self.start + self.span, source="tracked")


@dataclass(slots=True)
class Tracker:
    """Counts tokens against a tier."""

    tier: Tier
    _blocks: list[_Block] = field(init=False)

    def __post_init__(self) -> None:
        spans = (("five_hour", HOURS_5, self.tier.five_hour), ("seven_day", DAYS_7, self.tier.seven_day))
        self._blocks = [_Block(name, span, limit) for name, span, limit in spans if limit]

    def add(self, tokens: int, at: float) -> None:
        """Count tokens used at a moment. Moments may not go back by more than a request's length."""
        for block in self._blocks:
            block.add(tokens, at)

    def windows(self, now: float) -> tuple[Window, ...]:
        """Return the state of each window that the tier limits."""
        return tuple(block.window(now) for block in self._blocks)
