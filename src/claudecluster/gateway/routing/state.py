"""What the gateway knows of its providers between requests: lanes, gauges, tracked windows, and the ledger of use.

One for each gateway; the exchange reads and writes it, `/usage`, `/metrics` and the CLI show it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from claudecluster.gateway.metering.metrics import Metrics
from claudecluster.gateway.provider import Provider
from claudecluster.gateway.routing.policy import Fallback
from claudecluster.gateway.routing.recall import Past, Recall
from claudecluster.kit.clock import Clock
from claudecluster.limits.allowance import Spending
from claudecluster.limits.gauge import Gauge
from claudecluster.limits.lane import Lane, Pace
from claudecluster.limits.signals import Trouble
from claudecluster.limits.summary import Ledger, Standing, describe, summarize
from claudecluster.limits.tracker import TIERS, Tier, Tracker
from claudecluster.limits.windows import Window, family, from_headers
from claudecluster.model.usage import Metered, Usage

OF_MODELS = frozenset({"requests", "tokens", "input-tokens", "output-tokens"})  # an API key has these for each family of models


class Post:
    """One provider with what is known of it. Limits are kept by family of models, those of the account beside them (family "")."""

    def __init__(self, provider: Provider, threshold: float, pace: Pace, tier: Tier) -> None:
        self.provider = provider
        self.tracker = Tracker(tier)
        self.reports = False  # its server tells its windows, so ours are not needed
        self.lanes: dict[str, Lane] = {}
        self.gauges: dict[str, Gauge] = {"": Gauge(threshold)}
        self._threshold = threshold
        self._pace = pace
        self._shut: tuple[float, Trouble] | None = None

    def lane(self, model: str) -> Lane:
        """Return the way to a model."""
        name = self._family(model)
        if (lane := self.lanes.get(name)) is None:
            lane = self.lanes[name] = Lane(self.provider.name, self._pace)
            if self._shut is not None:
                lane.shut(*self._shut, 0.0)
        return lane

    def crossed(self, model: str, now: float) -> bool:
        """Whether traffic to a model had better go elsewhere before a limit hits."""
        own = self.gauges.get(self._family(model))
        return self.gauges[""].crossed_until(now) is not None or (own is not None and own.crossed_until(now) is not None)

    def see(self, windows: Iterable[Window], model: str, now: float) -> None:
        """Take in windows that an answer of a model told of."""
        for window in windows:
            name = self._family(model) if window.name in OF_MODELS else family(window.name)
            if name not in self.gauges:
                self.gauges[name] = Gauge(self._threshold)
            self.gauges[name].see([window], now)

    def shut(self, until: float, trouble: Trouble, now: float) -> None:
        """Close the ways to all models."""
        self._shut = (until, trouble)
        for lane in self.lanes.values():
            lane.shut(until, trouble, now)

    def standing(self) -> Standing:
        """Return it as the summary shows it."""
        return Standing(self.provider.name, self.provider.kind, self.lanes, self.gauges, self.provider.load())

    def _family(self, model: str) -> str:
        return family(model) if self.provider.kind == "anthropic" else ""


@dataclass(frozen=True, slots=True)
class Books:
    """What is counted and from when on: a plan's tier, the users' period, and what was metered elsewhere, if that counts."""

    tier: str = "api"
    users: Spending = field(default_factory=Spending)
    past: Past | None = None


class State:
    """The posts by name, in order of configuration, and the ledger."""

    def __init__(
        self, providers: Iterable[Provider], fallback: Fallback, clock: Clock, books: Books | None = None, pace: Pace | None = None
    ) -> None:
        books = books or Books()
        self.fallback = fallback
        self.clock = clock
        self.ledger = Ledger()
        self.users = books.users
        self._recall = Recall(books.past, self.ledger, self.users, clock) if books.past is not None else None
        self.metrics = Metrics()
        self.posts: dict[str, Post] = {}
        for provider in providers:
            counted = TIERS.get(books.tier, Tier()) if provider.kind == "anthropic" else Tier()
            self.posts[provider.name] = Post(provider, fallback.threshold, pace or Pace(), counted)

    def record(self, metered: Metered) -> bool:
        """Count a record. Returns whether it was new."""
        if not self.ledger.add(metered):
            return False
        self.users.add(metered)
        self.metrics.metered(metered)
        post = self.posts.get(metered.provider)
        if post is not None and not post.reports:
            post.tracker.add(metered.usage.input_tokens + metered.usage.output_tokens, metered.at)
            post.see(post.tracker.windows(metered.at), metered.model, metered.at)
        return True

    async def recall(self) -> None:
        """Count what was metered before this gateway began. Raises Unavailable."""
        if self._recall is not None:
            await self._recall.begin()

    async def refresh(self) -> None:
        """Count what other gateways on the same store have metered by now."""
        if self._recall is not None:
            await self._recall.refresh()

    def heard(self, post: Post, model: str, headers: Mapping[str, str]) -> None:
        """Take in the limit headers of a response."""
        if windows := from_headers(headers):
            post.reports = True
            post.see(windows, model, self.clock.now())

    def usage(self, waiting: int = 0) -> dict[str, Any]:
        """Return the document of `GET /usage`."""
        fallback = {"mode": self.fallback.mode, "connected": self.fallback.connected, "threshold": self.fallback.threshold}
        return summarize(self.ledger, [post.standing() for post in self.posts.values()], self.clock.now()) | {
            "fallback": fallback,
            "waiting": waiting,
        }

    def providers(self) -> list[dict[str, Any]]:
        """Return the providers' part of it alone."""
        return [describe(post.standing(), self.clock.now()) for post in self.posts.values()]

    def page(self, waiting: int = 0) -> bytes:
        """Return the document of `GET /metrics`."""
        now = self.clock.now()
        flying = {name: sum(lane.flying for lane in post.lanes.values()) for name, post in self.posts.items()}
        used = {
            (name, f"{kind} {window.name}".lstrip()): window.used
            for name, post in self.posts.items()
            for kind, gauge in post.gauges.items()
            for window in gauge.windows(now)
        }
        self.metrics.state(waiting, flying, used)
        return self.metrics.page()


@dataclass(slots=True)
class Purse:
    """What one door has used, for its own budget."""

    used: Usage = field(default_factory=Usage)
