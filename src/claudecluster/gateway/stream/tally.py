"""What one answer used, counted from its own events or its JSON (Anthropic's `usage`, whose counts are cumulative).

The exchange feeds it as the answer passes. Pure. It counts what the upstream reported, also of answers that were cut.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from claudecluster.model.usage import Usage

PLAIN = ("input_tokens", "output_tokens", "cache_read_input_tokens")


@dataclass(slots=True)
class Tally:
    """The message id, model and last counts told so far."""

    message: str = ""
    model: str = ""
    stop_reason: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_5m: int = 0
    cache_creation_1h: int = 0
    web_searches: int = 0

    def event(self, event: Mapping[str, Any]) -> None:
        """Count one stream event."""
        kind = event.get("type")
        if kind == "message_start":
            self.document(event.get("message"))
        elif kind == "message_delta":
            delta = event.get("delta")
            if isinstance(delta, Mapping):
                self.stop_reason = str(delta.get("stop_reason") or self.stop_reason)
            self._usage(event.get("usage"))

    def document(self, message: object) -> None:
        """Count a whole message, or the start of one."""
        if not isinstance(message, Mapping):
            return
        self.message = str(message.get("id") or self.message)
        self.model = str(message.get("model") or self.model)
        self.stop_reason = str(message.get("stop_reason") or self.stop_reason)
        self._usage(message.get("usage"))

    def usage(self, cost_usd: float = 0.0) -> Usage:
        """Return the counts as one request's usage."""
        return Usage(
            requests=1,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cache_read_input_tokens=self.cache_read_input_tokens,
            cache_creation_5m_input_tokens=self.cache_creation_5m,
            cache_creation_1h_input_tokens=self.cache_creation_1h,
            cost_usd=cost_usd,
        )

    def _usage(self, usage: object) -> None:
        if not isinstance(usage, Mapping):
            return
        # Each report is cumulative and the later one truer; a zero is a server that does not repeat itself.
        for name in PLAIN:
            setattr(self, name, _count(usage.get(name)) or getattr(self, name))
        written = _count(usage.get("cache_creation_input_tokens"))
        tiers = usage.get("cache_creation")
        if isinstance(tiers, Mapping):
            self.cache_creation_1h = _count(tiers.get("ephemeral_1h_input_tokens"))
            self.cache_creation_5m = _count(tiers.get("ephemeral_5m_input_tokens"))
        # Where only the total is told, it was written at the default tier of five minutes.
        self.cache_creation_5m = max(self.cache_creation_5m, written - self.cache_creation_1h)
        tools = usage.get("server_tool_use")
        if isinstance(tools, Mapping):
            self.web_searches = max(self.web_searches, _count(tools.get("web_search_requests")))


def _count(value: object) -> int:
    return max(0, int(value)) if isinstance(value, int | float) else 0
