"""How many requests one provider gets at once, and when it gets none: admission for the whole fleet.

Additive increase, multiplicative decrease (Chiu and Jain 1989) over requests in flight; a closed time after a limit or an
outage, honoured for everybody at once; then a single probe, and only its success opens the lane again. The gateway keeps one
lane for each provider and queues in front of it. Pure: time and chance are arguments.
"""

from dataclasses import dataclass, field

from claudecluster.limits.signals import Trouble

FORGIVEN = 3  # passing failures in a row that close nothing: one broken stream says little about the provider
PASSING = frozenset({Trouble.LIMITED, Trouble.OVERLOADED, Trouble.GONE, Trouble.BROKEN})


@dataclass(frozen=True, slots=True)
class Pace:
    """The numbers of a lane. Seconds; a closed time doubles from `first` up to `longest` while failures go on."""

    start: float = 64.0
    ceiling: float = 256.0
    first: float = 2.0
    longest: float = 60.0


@dataclass(slots=True, eq=False)
class Ticket:
    """The right to one request. Give it back with exactly one `leave`."""

    lane: "Lane"
    entered: float
    probe: bool = False


@dataclass(slots=True, eq=False)
class Lane:
    """The way to one provider."""

    name: str
    pace: Pace = field(default_factory=Pace)
    allowed: float = 0.0
    flying: int = 0
    closed_until: float = 0.0
    why: str = ""
    heard: float = float("-inf")  # since when what is known of it holds
    _strikes: int = 0
    _failures: int = 0
    _struck: float = float("-inf")
    _probing: bool = False

    def __post_init__(self) -> None:
        self.allowed = self.allowed or self.pace.start

    def opens(self, now: float) -> float | None:
        """Return the moment it opens again; None if it is open (though it may be full)."""
        return self.closed_until if self.closed_until > now else None

    @property
    def doubtful(self) -> bool:
        """Whether it was closed and nothing has succeeded since."""
        return self._strikes > 0

    @property
    def probing(self) -> bool:
        """Whether a single request is out to see if it works again."""
        return self._probing

    def enter(self, now: float) -> Ticket | None:
        """Return a ticket, or None while it is closed, full or being probed."""
        if self.closed_until > now or self.flying >= int(self.allowed):
            return None
        if self._strikes:
            if self._probing:
                return None
            self._probing = True
        self.flying += 1
        return Ticket(self, now, probe=self._strikes > 0)

    def good(self, ticket: Ticket) -> None:
        """Note that the provider answers: the first good bytes of a ticket's request have come."""
        if ticket.entered < self._struck:
            return  # an answer begun before the limit hit says nothing about now
        if ticket.probe:
            self._probing = False
        self.heard = max(self.heard, ticket.entered)
        self._strikes = self._failures = 0
        self.why = ""
        if self.flying >= self.allowed / 2:  # growth is earned by use
            self.allowed = min(self.pace.ceiling, self.allowed + 1.0 / self.allowed)

    def leave(self, ticket: Ticket) -> None:
        """Give a ticket back, however its request went."""
        self.flying -= 1
        if ticket.probe:
            self._probing = False

    def bad(self, ticket: Ticket, trouble: Trouble, now: float, *, until: float | None = None, chance: float = 0.5) -> None:
        """Note a failure of the provider's. Failures of requests that were on their way together count once."""
        if trouble not in PASSING:
            return
        self.heard = max(self.heard, now)
        if until is not None and until > self.closed_until and trouble is not Trouble.BROKEN:
            self._close(until, trouble)
        if ticket.entered < self._struck:
            return
        if trouble is Trouble.BROKEN:
            self._failures += 1
            if self._failures < FORGIVEN and not ticket.probe:
                return
        self._struck = now
        self._strikes += 1
        if trouble is Trouble.LIMITED:
            self.allowed = max(1.0, self.allowed / 2)
        delay = min(self.pace.longest, self.pace.first * 2.0 ** min(20, self._strikes - 1))
        self._close(now + delay * (0.75 + chance / 2) if until is None else until, trouble)

    def shut(self, until: float, trouble: Trouble, now: float) -> None:
        """Close it for a trouble that another lane to the same place has met."""
        if until > self.closed_until:
            self._struck = now
            self.heard = max(self.heard, now)
            self._strikes = max(1, self._strikes)
            self._close(until, trouble)

    def _close(self, until: float, trouble: Trouble) -> None:
        self.closed_until = max(self.closed_until, until)
        self.why = trouble.value
