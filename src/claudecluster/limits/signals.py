"""What a sign of trouble means, from every source that gives one (requirement R3), in one place and in one vocabulary.

The gateway reads statuses, headers and stream events; agents read Claude Code's own lines, its prose and exit codes.
Structured signs come first: prose changes between versions and is read only where there is nothing else. Pure.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

from claudecluster.limits.windows import rejected_until, retry_after

LIMIT_EXIT = 129  # what wrappers around older CLIs exit with at a usage limit


class Trouble(Enum):
    """Why a provider did not answer."""

    LIMITED = "limited"  # this account may not ask more now
    OVERLOADED = "overloaded"  # the provider has no room for anybody
    GONE = "gone"  # it cannot be reached at all
    BROKEN = "broken"  # it failed on this request
    DENIED = "denied"  # the key or login is not accepted
    UNPAID = "unpaid"  # billing
    INVALID = "invalid"  # the request itself is at fault


@dataclass(frozen=True, slots=True)
class Signal:
    """A trouble, and the moment (epoch seconds) it is said to end, if it is said."""

    trouble: Trouble
    until: float | None = None
    why: str = ""


BY_STATUS: Mapping[int, Trouble] = {
    401: Trouble.DENIED,
    402: Trouble.UNPAID,
    403: Trouble.DENIED,
    408: Trouble.BROKEN,
    429: Trouble.LIMITED,
    503: Trouble.OVERLOADED,
    529: Trouble.OVERLOADED,
}
BY_TYPE: Mapping[str, Trouble] = {
    "rate_limit_error": Trouble.LIMITED,
    "rate_limit": Trouble.LIMITED,
    "overloaded_error": Trouble.OVERLOADED,
    "api_error": Trouble.BROKEN,
    "server_error": Trouble.BROKEN,
    "timeout_error": Trouble.BROKEN,
    "authentication_error": Trouble.DENIED,
    "authentication_failed": Trouble.DENIED,
    "permission_error": Trouble.DENIED,
    "billing_error": Trouble.UNPAID,
    "invalid_request_error": Trouble.INVALID,
    "invalid_request": Trouble.INVALID,
    "not_found_error": Trouble.INVALID,
    "model_not_found": Trouble.INVALID,
    "request_too_large": Trouble.INVALID,
}
OLD_PROSE = re.compile(r"usage limit reached\|(\d{9,12})")
PROSE = re.compile(r"(?:hit|reached) your (?:[\w-]+ )?limit|usage limit reached|Request rejected \(429\)", re.IGNORECASE)
RESETS = re.compile(
    r"resets (?:(?P<month>[A-Z][a-z]{2}) (?P<day>\d{1,2}), )?(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?(?P<half>am|pm) \(UTC\)"
)
OVERLOADED_PROSE = re.compile(r"\bAPI Error: (?:529|503)\b|Overloaded", re.IGNORECASE)


def from_response(status: int, headers: Mapping[str, str], kind: str, now: float) -> Signal | None:
    """Read an HTTP response; `kind` is the error type in its body, if any. None is no trouble."""
    if status < 400:
        return None
    trouble = BY_STATUS.get(status) or BY_TYPE.get(kind) or (Trouble.BROKEN if status >= 500 else Trouble.INVALID)
    until = rejected_until(headers) if status == 429 else None
    return Signal(trouble, until or retry_after(headers, now), f"HTTP {status}")


def from_event(event: Mapping[str, Any], now: float) -> Signal | None:  # noqa: ARG001 - every source is read the same way
    """Read a stream event. None is no trouble."""
    if event.get("type") != "error":
        return None
    error = event.get("error")
    kind = str(error.get("type") or "") if isinstance(error, Mapping) else ""
    return Signal(BY_TYPE.get(kind, Trouble.BROKEN), None, f"error event {kind}".rstrip())


def from_cli(line: Mapping[str, Any], now: float) -> Signal | None:
    """Read one JSON line of Claude Code's output. None is no trouble."""
    kind = line.get("type")
    if kind == "rate_limit_event":
        return _rate_limit_event(line.get("rate_limit_info"))
    if kind == "assistant" and isinstance(line.get("error"), str):
        return Signal(BY_TYPE.get(line["error"], Trouble.BROKEN), None, line["error"])
    if kind == "system" and line.get("subtype") == "api_retry":
        status = line.get("error_status")
        return from_response(status if isinstance(status, int) else 599, {}, str(line.get("error") or ""), now)
    if kind == "result" and line.get("is_error") is True:  # `subtype` says success even then
        status = line.get("api_error_status")
        told = from_text(str(line.get("result") or ""), now)
        if isinstance(status, int):
            read = from_response(status, {}, "", now)
            return Signal(read.trouble, told.until if told else None, read.why) if read else told
        return told
    return None


def from_text(text: str, now: float) -> Signal | None:
    """Read prose, as a last resort. None says nothing about trouble."""
    if (old := OLD_PROSE.search(text)) is not None:
        return Signal(Trouble.LIMITED, float(old[1]), "usage limit reached")
    if PROSE.search(text):
        return Signal(Trouble.LIMITED, _resets(text, now), "limit text")
    if OVERLOADED_PROSE.search(text):
        return Signal(Trouble.OVERLOADED, None, "overloaded text")
    return None


def from_exit(code: int) -> Signal | None:
    """Read an exit code. None says nothing about trouble."""
    return Signal(Trouble.LIMITED, None, f"exit code {code}") if code == LIMIT_EXIT else None


def _rate_limit_event(info: object) -> Signal | None:
    if not isinstance(info, Mapping) or info.get("status") != "rejected":
        return None
    if info.get("isUsingOverage") is True:
        return None
    resets = info.get("resetsAt")
    return Signal(Trouble.LIMITED, float(resets) if isinstance(resets, int | float) else None, str(info.get("rateLimitType") or "limit"))


def _resets(text: str, now: float) -> float | None:
    found = RESETS.search(text)
    if found is None:
        return None
    today = datetime.fromtimestamp(now, UTC)
    hour = int(found["hour"]) % 12 + (12 if found["half"] == "pm" else 0)
    at = today.replace(hour=hour, minute=int(found["minute"] or 0), second=0, microsecond=0)
    if found["month"] is None:
        return (at if at.timestamp() > now else at + timedelta(days=1)).timestamp()
    try:
        at = at.replace(month=MONTHS.index(found["month"]) + 1, day=int(found["day"]))
    except ValueError:
        return None
    return (at if at.timestamp() > now - 86400 else at.replace(year=at.year + 1)).timestamp()


MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
