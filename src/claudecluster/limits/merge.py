"""What several processes know of the same providers' limits, put together: for each window and each way the newest word counts.

Rows are those of the usage document (`summary.py`). Whoever keeps them in a file calls it. Pure.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

UNSAID = 300.0  # seconds for which a window without a reset time is believed, and that a way is doubtful
LASTING = 7 * 86400.0  # seconds after which a provider that is fine need not be remembered
Row = dict[str, Any]


def claims(providers: Iterable[Row]) -> list[Row]:
    """Return what these rows say for certain: ways that somebody took, and windows. Who knows nothing of a provider says nothing."""
    told = [provider | {"ways": [way for way in provider["ways"] if way["heard"]], "in_flight": 0, "load": 0.0} for provider in providers]
    return [provider for provider in told if provider["ways"] or provider["windows"]]


def merged(known: Iterable[Row], told: Iterable[Row]) -> list[Row]:
    """Return the rows of both, in the order they were first told of."""
    rows = {row["name"]: row for row in known}
    for row in told:
        old = rows.get(row["name"])
        rows[row["name"]] = (
            row
            if old is None
            else {**old, **row}
            | {
                "ways": _newest(old["ways"], row["ways"], "models", "heard"),
                "windows": _newest(old["windows"], row["windows"], "name", "seen"),
            }
        )
    return list(rows.values())


def current(provider: Row, now: float) -> Row:
    """Return a row as it stands at a moment: without windows that have started anew, with a state that follows from the rest."""
    windows = [window for window in provider["windows"] if _ends(window) > now]
    ways = [way if _holds(way, now) else way | {"state": "open", "why": "", "returns": None} for way in provider["ways"]]
    closed = [way for way in ways if way["state"] == "closed"]
    probing = [way for way in ways if way["state"] == "probing"]
    near = [window for window in windows if window["used"] >= provider["threshold"]]
    state = "closed" if closed else "probing" if probing else "near-limit" if near else "open"
    returns = [way["returns"] for way in closed] or [window["resets"] for window in near if window["resets"]]
    last = max(closed, key=lambda way: str(way["returns"]), default=probing[0] if probing else None)
    return provider | {
        "windows": windows,
        "ways": ways,
        "state": state,
        "why": last["why"] if last else "",
        "returns": max(returns, default=None),
    }


def lasting(provider: Row, now: float) -> bool:
    """Whether a row is still worth keeping."""
    return bool(provider["windows"]) or any(way["state"] != "open" or _heard(way) > now - LASTING for way in provider["ways"])


def _holds(way: Row, now: float) -> bool:
    returns = _at(way["returns"])
    return _heard(way) + UNSAID > now if returns is None else returns > now


def _heard(way: Row) -> float:
    return _at(way["heard"]) or 0.0


def _newest(known: list[Row], told: list[Row], name: str, when: str) -> list[Row]:
    rows = {row[name]: row for row in known}
    for row in told:
        old = rows.get(row[name])
        if old is None or (_at(row[when]) or 0.0) >= (_at(old[when]) or 0.0):
            rows[row[name]] = row
    return list(rows.values())


def _ends(window: Mapping[str, Any]) -> float:
    return _at(window["resets"]) or (_at(window["seen"]) or 0.0) + UNSAID


def _at(moment: str | None) -> float | None:
    return None if moment is None else datetime.fromisoformat(moment).astimezone(UTC).timestamp()
