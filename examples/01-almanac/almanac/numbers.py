"""Whole numbers and small statistics."""

from collections.abc import Iterable, Sequence

ROMAN = (
    (1000, "M"),
    (500, "D"),
    (100, "C"),
    (50, "L"),
    (10, "X"),
    (5, "V"),
    (1, "I"),
)


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean. An empty sequence is a ValueError."""
    if not values:
        raise ValueError("mean of nothing")
    return sum(values) / len(values)


def median(values: Sequence[float]) -> float:
    """Return the middle value; of an even number of values, the mean of the two in the middle."""
    if not values:
        raise ValueError("median of nothing")
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def spread(values: Sequence[float]) -> float:
    """Return the distance between the smallest and the largest value."""
    if not values:
        raise ValueError("spread of nothing")
    return max(values) - min(values)


def running_total(values: Iterable[float]) -> list[float]:
    """Return the sums of ever longer beginnings of the sequence."""
    totals: list[float] = []
    total = 0.0
    for value in values:
        total += value
        totals.append(total)
    return totals


def digits(number: int, base: int = 10) -> list[int]:
    """Return a number's digits, the most significant first. The sign is dropped."""
    if base < 2:
        raise ValueError(f"no such base: {base}")
    number = abs(number)
    found = [number % base]
    while number >= base:
        number //= base
        found.append(number % base)
    return found[::-1]


def to_roman(number: int) -> str:
    """Write 1 to 3999 as a Roman numeral, in its shortest usual form (4 is IV, 1990 is MCMXC)."""
    if not 1 <= number <= 3999:
        raise ValueError(f"no Roman numeral for {number}")
    written = ""
    for worth, letter in ROMAN:
        count, number = divmod(number, worth)
        written += letter * count
    return written


def from_roman(written: str) -> int:
    """Read a Roman numeral, in capitals or not. A letter before a larger one is subtracted."""
    worths = {letter: worth for worth, letter in ROMAN if len(letter) == 1}
    total = 0
    largest = 0
    for letter in reversed(written.strip().upper()):
        if letter not in worths:
            raise ValueError(f"not a Roman digit: {letter}")
        worth = worths[letter]
        total += -worth if worth < largest else worth
        largest = max(largest, worth)
    if not total:
        raise ValueError("an empty Roman numeral")
    return total
