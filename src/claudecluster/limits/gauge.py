"""Whether a provider is near its limits, without flapping: crossed at the threshold, left well below it or at the reset.

The gateway keeps one for each provider. Pure: the time is an argument.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from claudecluster.limits.windows import Window

MARGIN = 0.1  # how far below the threshold use must fall before traffic returns
UNKNOWN_RESET = 300.0  # how long a window without a reset time is believed
REMEMBERED = 256


@dataclass(slots=True)
class Gauge:
    """The latest windows of one provider, and whether they are crossed. `threshold` is a share (0..1)."""

    threshold: float = 0.8
    margin: float = MARGIN
    _windows: dict[str, tuple[Window, float]] = field(default_factory=dict)
    _crossed: set[str] = field(default_factory=set)
    _history: dict[str, deque[tuple[float, float]]] = field(default_factory=dict)

    def see(self, windows: Iterable[Window], now: float) -> None:
        """Take in what the server (or our own tracking) says now."""
        for window in windows:
            self._windows[window.name] = (window, now)
            self._note(window, now)
            if window.used >= self.threshold or window.status == "rejected":
                self._crossed.add(window.name)
            elif window.used < self.threshold - self.margin:
                self._crossed.discard(window.name)

    def crossed_until(self, now: float) -> float | None:
        """Return until when traffic had better go elsewhere; None if this provider is fine."""
        latest: float | None = None
        for name in tuple(self._crossed):
            ends = self._ends(name)
            if ends <= now:
                self._crossed.discard(name)
            else:
                latest = max(latest or 0.0, ends)
        return latest

    def windows(self, now: float) -> tuple[Window, ...]:
        """Return the windows that have not been reset since they were reported."""
        return tuple(window for name, (window, _) in self._windows.items() if self._ends(name) > now)

    def seen(self, name: str) -> float:
        """Return when a window was last reported."""
        return self._windows[name][1]

    def full_at(self, name: str, now: float) -> float | None:
        """Return when the window will be full at the pace of late; None if not before its reset, or if nothing grows."""
        points = self._history.get(name)
        if not points or len(points) < 2 or self._ends(name) <= now:
            return None
        (start, first), (end, last) = points[0], points[-1]
        if end <= start or last <= first:
            return None
        if last >= 1.0:
            return now
        full = end + (1.0 - last) * (end - start) / (last - first)
        resets = self._windows[name][0].resets
        return full if resets is None or full < resets else None

    def _note(self, window: Window, now: float) -> None:
        points = self._history.setdefault(window.name, deque(maxlen=REMEMBERED))
        if points and window.used < points[-1][1]:
            points.clear()  # it was reset: the old pace says nothing
        points.append((now, window.used))

    def _ends(self, name: str) -> float:
        window, seen = self._windows[name]
        return window.resets if window.resets is not None else seen + UNKNOWN_RESET
