"""Lengths, temperatures and amounts of data."""

LENGTHS = {
    "mm": 0.001,
    "cm": 0.01,
    "m": 1.0,
    "km": 1000.0,
    "in": 0.0254,
    "ft": 0.3048,
    "yd": 0.9144,
    "mi": 1609.344,
}
DATA = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
STEP = 1024


def convert(amount: float, unit: str, to: str) -> float:
    """Convert a length. An unknown unit is a ValueError."""
    for name in (unit, to):
        if name not in LENGTHS:
            raise ValueError(f"unknown unit of length: {name}")
    return amount * LENGTHS[unit] / LENGTHS[to]


def fahrenheit(celsius: float) -> float:
    """Convert degrees Celsius."""
    return celsius * 9 / 5 + 32


def celsius(fahrenheit: float) -> float:
    """Convert degrees Fahrenheit."""
    return (fahrenheit - 32) * 5 / 9


def human_bytes(count: int) -> str:
    """Write a number of bytes with one decimal in the largest unit that leaves at least 1: "1.5 KiB"; bytes without: "12 B"."""
    if count < 0:
        raise ValueError(f"a negative amount of data: {count}")
    if count < STEP:
        return f"{count} B"
    amount = float(count)
    for unit in DATA:
        if amount < STEP or unit == DATA[-1]:
            return f"{amount:.1f} {unit}"
        amount /= STEP
    raise AssertionError("unreachable")
