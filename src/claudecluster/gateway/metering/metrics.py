"""What the gateway tells Prometheus. The exchange counts, `GET /metrics` shows.

A registry of its own, so that two gateways in one process do not meet.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from claudecluster.model.usage import Metered

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
KINDS = ("input", "output", "cache_read", "cache_creation_5m", "cache_creation_1h")


class Metrics:
    """Counters and gauges of one gateway."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._children: dict[tuple[str, str], tuple[Counter, ...]] = {}
        self._requests = Counter(
            "claudecluster_gateway_requests", "Requests answered, by who answered", ["provider", "status"], registry=registry
        )
        self._tokens = Counter("claudecluster_gateway_tokens", "Tokens metered", ["provider", "model", "type"], registry=registry)
        self._cost = Counter("claudecluster_gateway_cost_usd", "Cost metered, in USD", ["provider", "model"], registry=registry)
        self._degraded = Counter("claudecluster_gateway_degraded_requests", "Answers by a stand-in", ["model"], registry=registry)
        self._failures = Counter(
            "claudecluster_gateway_failures", "Failures of providers", ["provider", "cause", "trouble"], registry=registry
        )
        self._switches = Counter(
            "claudecluster_gateway_switches", "Requests that moved on to another provider", ["source", "target"], registry=registry
        )
        self._spliced = Counter(
            "claudecluster_gateway_spliced_messages", "Messages ended or gone on with for an upstream that broke off", registry=registry
        )
        self._first = Histogram(
            "claudecluster_gateway_first_byte_seconds", "Time to an answer's first byte", ["provider"], buckets=SECONDS, registry=registry
        )
        self._waiting = Gauge("claudecluster_gateway_waiting_requests", "Requests waiting for a provider", registry=registry)
        self._flying = Gauge("claudecluster_gateway_requests_in_flight", "Requests being answered", ["provider"], registry=registry)
        self._used = Gauge(
            "claudecluster_gateway_window_used_ratio", "Share of a limit window that is used", ["provider", "window"], registry=registry
        )

    def answered(self, provider: str, status: int) -> None:
        """Count an answer given to a client."""
        self._requests.labels(provider, str(status)).inc()

    def first_byte(self, provider: str, seconds: float) -> None:
        """Note how long a client waited for the first byte of an answer."""
        self._first.labels(provider).observe(seconds)

    def failed(self, provider: str, cause: str, trouble: str) -> None:
        """Count a provider's failure."""
        self._failures.labels(provider, cause, trouble).inc()

    def switched(self, source: str, target: str) -> None:
        """Count a request that moved on."""
        self._switches.labels(source, target).inc()

    def spliced(self) -> None:
        """Count a message that was mended."""
        self._spliced.inc()

    def metered(self, record: Metered) -> None:
        """Count what an answer used."""
        usage = record.usage
        children = self._children.get((record.provider, record.model))
        if children is None:
            children = tuple(self._tokens.labels(record.provider, record.model, kind) for kind in KINDS)
            self._children[record.provider, record.model] = children
        counts = (
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_read_input_tokens,
            usage.cache_creation_5m_input_tokens,
            usage.cache_creation_1h_input_tokens,
        )
        for child, count in zip(children, counts, strict=True):
            if count:
                child.inc(count)
        if usage.cost_usd:
            self._cost.labels(record.provider, record.model).inc(usage.cost_usd)
        if record.degraded:
            self._degraded.labels(record.model).inc()

    def state(self, waiting: int, flying: dict[str, int], used: dict[tuple[str, str], float]) -> None:
        """Set what is true at this moment."""
        self._waiting.set(waiting)
        for provider, count in flying.items():
            self._flying.labels(provider).set(count)
        for (provider, window), share in used.items():
            self._used.labels(provider, window).set(share)

    def page(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self._registry)
