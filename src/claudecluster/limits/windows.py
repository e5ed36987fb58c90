"""Limit windows as the server reports them in its response headers.

The gateway reads them off every answer, also good ones, so it knows the state before a limit hits. Pure.
Two dialects: `anthropic-ratelimit-unified-*` (subscriptions: utilisation 0..1, resets in epoch seconds) and
`anthropic-ratelimit-{requests,tokens,...}-{limit,remaining,reset}` (API keys: resets in RFC 3339; docs: api/rate-limits).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Literal

PREFIX = "anthropic-ratelimit-"
UNIFIED = re.compile(r"anthropic-ratelimit-unified-(\d+[a-z]+(?:[_-](?:opus|sonnet|haiku|fable))?)-(utilization|reset|status)")
BUCKET = re.compile(r"anthropic-(?:ratelimit|priority)-([a-z-]+)-(limit|remaining|reset)")
SPANS: Mapping[str, str] = {"5h": "five_hour", "7d": "seven_day", "7d_opus": "seven_day_opus", "7d_sonnet": "seven_day_sonnet"}
FAMILIES = ("opus", "sonnet", "haiku", "fable")


def family(model: str) -> str:
    """Return the family of models that shares limits with this one; empty for models of other makers."""
    return next((name for name in FAMILIES if name in model), "")


@dataclass(frozen=True, slots=True)
class Window:
    """One window: how much of it is used (0..1 and above), and when it starts anew (epoch seconds, if known)."""

    name: str
    used: float
    resets: float | None = None
    status: str = ""
    source: Literal["server", "tracked"] = "server"


def from_headers(headers: Mapping[str, str]) -> tuple[Window, ...]:
    """Return the windows that a response's headers (lower-case names) tell of; what cannot be read is left out."""
    parts: dict[str, dict[str, str]] = {}
    for name, value in headers.items():
        if not name.startswith(("anthropic-ratelimit-", "anthropic-priority-")):
            continue
        if (found := UNIFIED.fullmatch(name)) is not None:
            parts.setdefault(SPANS.get(found[1].replace("-", "_"), found[1]), {})[found[2]] = value
        elif not name.startswith("anthropic-ratelimit-unified-") and (found := BUCKET.fullmatch(name)) is not None:
            parts.setdefault(found[1], {})[found[2]] = value
    windows = (_window(name, fields) for name, fields in parts.items())
    return tuple(window for window in windows if window is not None)


def rejected_until(headers: Mapping[str, str]) -> float | None:
    """Return when the server says it will serve a subscription again, if it says that it does not now."""
    if headers.get("anthropic-ratelimit-unified-status") != "rejected":
        return None
    return moment(headers.get("anthropic-ratelimit-unified-reset", ""))


def concerns_all(headers: Mapping[str, str]) -> bool:
    """Whether a rejection is of the whole account, not of one family of models (those have limits of their own)."""
    claim = headers.get("anthropic-ratelimit-unified-representative-claim", "")
    return headers.get("anthropic-ratelimit-unified-status") == "rejected" and not family(claim)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the moment that `retry-after` names (seconds or an HTTP date: RFC 9110, 10.2.3), if it names one."""
    value = headers.get("retry-after", "").strip()
    seconds = _number(value)
    if seconds is not None:
        return now + max(0.0, seconds)
    try:
        return parsedate_to_datetime(value).timestamp() if value else None
    except (ValueError, OverflowError):
        return None


def moment(value: str) -> float | None:
    """Return epoch seconds from epoch seconds or RFC 3339."""
    seconds = _number(value)
    if seconds is not None:
        return seconds
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        return None
    return at.timestamp() if at.tzinfo is not None else None


def _window(name: str, fields: Mapping[str, str]) -> Window | None:
    resets = moment(fields.get("reset", ""))
    status = fields.get("status", "")
    used = _number(fields.get("utilization", ""))
    if used is None:
        limit, remaining = _number(fields.get("limit", "")), _number(fields.get("remaining", ""))
        if limit and remaining is not None:
            used = 1.0 - remaining / limit
    if used is None and status:
        used = 1.0 if status == "rejected" else 0.0
    return None if used is None else Window(name, max(0.0, used), resets, status)


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if abs(number) < 1e15 else None  # also keeps nan and infinities out
