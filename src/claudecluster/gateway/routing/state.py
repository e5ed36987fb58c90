"""What the gateway knows of its providers between requests: lanes, gauges, tracked windows, and the ledger of use.

One for each gateway; the exchange reads and writes it, `/usage`, `/metrics` and the CLI show it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from claudecluster.gateway.metering.metrics import Metrics
from claudecluster.gateway.provider import Provider
from claudecluster.gateway.routing.policy import Fallback
from claudecluster.kit.clock import Clock
from claudecluster.limits.gauge import Gauge
from claudecluster.limits.lane import Lane, Pace
from claudecluster.limits.summary import Ledger, Standing, summarize
from claudecluster.limits.tracker import TIERS, Tier, Tracker
from claudecluster.limits.windows import from_headers
from claudecluster.model.usage import Metered, Usage


@dataclass(slots=True)
class Post:
    """One provider with what is known of it."""

    provider: Provider
    lane: Lane
    gauge: Gauge
    tracker: Tracker
    reports: bool = False  # its server tells its windows, so ours are not needed


class State:
    """The posts by name, in order of configuration, and the ledger."""

    def __init__(
        self, providers: Iterable[Provider], fallback: Fallback, clock: Clock, *, tier: str = "api", pace: Pace | None = None
    ) -> None:
        self.fallback = fallback
        self.clock = clock
        self.ledger = Ledger()
        self.metrics = Metrics()
        self.posts: dict[str, Post] = {}
        for provider in providers:
            counted = Tracker(TIERS.get(tier, Tier()) if provider.kind == "anthropic" else Tier())
            gauge = Gauge(fallback.threshold)
            self.posts[provider.name] = Post(provider, Lane(provider.name, pace or Pace()), gauge, counted)

    def record(self, metered: Metered) -> bool:
        """Count a record. Returns whether it was new."""
        if not self.ledger.add(metered):
            return False
        self.metrics.metered(metered)
        post = self.posts.get(metered.provider)
        if post is not None and not post.reports:
            post.tracker.add(metered.usage.input_tokens + metered.usage.output_tokens, metered.at)
            post.gauge.see(post.tracker.windows(metered.at), metered.at)
        return True

    def heard(self, post: Post, headers: Any) -> None:
        """Take in the limit headers of a response."""
        if windows := from_headers(headers):
            post.reports = True
            post.gauge.see(windows, self.clock.now())

    def standings(self) -> list[Standing]:
        """Return each provider as the summary shows it."""
        return [Standing(name, post.provider.kind, post.lane, post.gauge, post.provider.load()) for name, post in self.posts.items()]

    def usage(self, waiting: int = 0) -> dict[str, Any]:
        """Return the document of `GET /usage`."""
        fallback = {"mode": self.fallback.mode, "connected": self.fallback.connected, "threshold": self.fallback.threshold}
        return summarize(self.ledger, self.standings(), self.clock.now()) | {"fallback": fallback, "waiting": waiting}

    def page(self, waiting: int = 0) -> bytes:
        """Return the document of `GET /metrics`."""
        now = self.clock.now()
        flying = {name: post.lane.flying for name, post in self.posts.items()}
        used = {(name, window.name): window.used for name, post in self.posts.items() for window in post.gauge.windows(now)}
        self.metrics.state(waiting, flying, used)
        return self.metrics.page()


@dataclass(slots=True)
class Purse:
    """What one door has used, for its own budget."""

    used: Usage = field(default_factory=Usage)
