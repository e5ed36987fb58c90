"""What was used and what is left, as one JSON-ready document: for `GET /usage` and `claudecluster usage`.

Pure: the gateway hands in its records and gauges. Records are kept as sums, so memory does not grow with requests.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from claudecluster.limits.gauge import Gauge
from claudecluster.limits.lane import Lane
from claudecluster.limits.windows import Window
from claudecluster.model.usage import Metered, Usage

SCOPES: Mapping[str, Callable[[Metered], str]] = {
    "model": lambda record: record.model,
    "provider": lambda record: record.provider,
    "run": lambda record: record.run,
    "task": lambda record: f"{record.run}/{record.task}" if record.run or record.task else "",
    "user": lambda record: record.user,
    "session": lambda record: record.session,
}
MOST = 10_000  # names kept per scope; the oldest go first
KEYS = 20_000


@dataclass(slots=True)
class Ledger:
    """Sums of metered use by model, provider, run, task, user and session. A record's key counts once."""

    total: Usage = field(default_factory=Usage)
    degraded: int = 0
    by: dict[str, dict[str, Usage]] = field(default_factory=lambda: {scope: {} for scope in SCOPES})
    _keys: dict[str, None] = field(default_factory=dict)

    def add(self, record: Metered) -> bool:
        """Count a record, of one request or the sum of several. Returns whether it was new."""
        if record.key in self._keys:
            return False
        self._keys[record.key] = None
        _trim(self._keys, KEYS)
        self.total += record.usage
        self.degraded += record.usage.requests if record.degraded else 0
        for scope, name_of in SCOPES.items():
            if name := name_of(record):
                sums = self.by[scope]
                sums[name] = sums.pop(name, Usage()) + record.usage
                _trim(sums, MOST)
        return True

    def of(self, scope: str, name: str) -> Usage:
        """Return what that one has used."""
        return self.by[scope].get(name, Usage())


@dataclass(frozen=True, slots=True)
class Standing:
    """One provider as the summary shows it: a lane for each family of models, a gauge for the account ("") and for each family."""

    name: str
    kind: str
    lanes: Mapping[str, Lane]
    gauges: Mapping[str, Gauge]
    load: float = 0.0


def tokens(usage: Usage) -> int:
    """Return all tokens of a usage, whatever their tier."""
    return (
        usage.input_tokens
        + usage.output_tokens
        + usage.cache_read_input_tokens
        + usage.cache_creation_5m_input_tokens
        + usage.cache_creation_1h_input_tokens
    )


def summarize(ledger: Ledger, standings: Iterable[Standing], now: float) -> dict[str, Any]:
    """Return the whole picture. Times are RFC 3339 in UTC; `used` and `threshold` are shares of a window."""
    providers = [describe(standing, now) for standing in standings]
    return {
        "at": _time(now),
        "total": _usage(ledger.total) | {"degraded_requests": ledger.degraded},
        "providers": providers,
        **{f"by_{scope}": {name: _usage(usage) for name, usage in sums.items()} for scope, sums in ledger.by.items()},
        "advice": _advice(ledger, providers),
    }


def describe(standing: Standing, now: float) -> dict[str, Any]:
    """Return one provider's part of the summary. `state` is open, near-limit, probing or closed."""
    lanes = standing.lanes.values()
    ways = [_way(family, lane, now) for family, lane in standing.lanes.items()]
    closed = [(opens, lane.why) for lane in lanes if (opens := lane.opens(now)) is not None]
    crossed = [until for gauge in standing.gauges.values() if (until := gauge.crossed_until(now)) is not None]
    probing = [lane.why for lane in lanes if lane.doubtful]
    state = "closed" if closed else "probing" if probing else "near-limit" if crossed else "open"
    return {
        "name": standing.name,
        "kind": standing.kind,
        "state": state,
        "why": max(closed)[1] if closed else probing[0] if probing else "",
        "returns": _time(max(closed)[0] if closed else max(crossed, default=None)),
        "in_flight": sum(lane.flying for lane in lanes),
        "allowed": sum(int(lane.allowed) for lane in lanes),
        "ways": ways,
        "load": round(standing.load, 3),
        "threshold": max((gauge.threshold for gauge in standing.gauges.values()), default=1.0),
        "windows": [_window(window, family, gauge, now) for family, gauge in standing.gauges.items() for window in gauge.windows(now)],
    }


def _way(family: str, lane: Lane, now: float) -> dict[str, Any]:
    opens = lane.opens(now)
    return {
        "models": family,
        "state": "closed" if opens is not None else "probing" if lane.doubtful else "open",
        "why": lane.why,
        "returns": _time(opens),
        "heard": _time(lane.heard, "milliseconds") if lane.heard > 0 else None,
    }


def _window(window: Window, family: str, gauge: Gauge, now: float) -> dict[str, Any]:
    return {
        "name": f"{family} {window.name}".lstrip(),
        "used": round(window.used, 4),
        "resets": _time(window.resets),
        "source": window.source,
        "full_at": _time(gauge.full_at(window.name, now)),
        "seen": _time(gauge.seen(window.name), "milliseconds"),
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "requests": usage.requests,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_input_tokens": usage.cache_read_input_tokens,
        "cache_creation_5m_input_tokens": usage.cache_creation_5m_input_tokens,
        "cache_creation_1h_input_tokens": usage.cache_creation_1h_input_tokens,
        "cost_usd": round(usage.cost_usd, 6),
    }


def _advice(ledger: Ledger, providers: list[dict[str, Any]]) -> list[str]:
    advice = []
    total = ledger.total
    prompt = tokens(total) - total.output_tokens
    if total.requests >= 20 and prompt and total.cache_read_input_tokens / prompt < 0.5:
        share = round(100 * total.cache_read_input_tokens / prompt)
        advice.append(
            f"Only {share} % of the prompt tokens came from the cache: keep sessions going instead of starting new ones for small follow-ups."
        )
    costs = sorted(((usage.cost_usd, model) for model, usage in ledger.by["model"].items()), reverse=True)
    if costs and total.cost_usd > 1 and costs[0][0] > 0.8 * total.cost_usd and ("opus" in costs[0][1] or "fable" in costs[0][1]):
        advice.append(
            f"{costs[0][1]} makes {round(100 * costs[0][0] / total.cost_usd)} % of the cost: tests and documentation may do with a smaller model."
        )
    if total.cache_creation_1h_input_tokens > total.cache_read_input_tokens > 0:
        advice.append("More is written to the one-hour cache than read from it: the five-minute cache would cost less.")
    return advice + forecasts(providers)


def forecasts(providers: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a warning for each window that will be full before it starts anew."""
    return [
        f"{provider['name']} will fill its {window['name']} window at {window['full_at']}, before its reset: spread the work or connect a local model."
        for provider in providers
        for window in provider["windows"]
        if window["full_at"] is not None
    ]


def _time(at: float | None, exact: str = "seconds") -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec=exact)


def _trim(kept: dict[str, Any], most: int) -> None:
    if len(kept) > most:
        del kept[next(iter(kept))]
