"""Days, months and working days. Everything here is about dates of the Gregorian calendar, never about times of day."""

import calendar
from collections.abc import Collection, Iterator
from datetime import date, timedelta

SATURDAY = 5


def days_in_month(year: int, month: int) -> int:
    """Return how many days a month has."""
    return calendar.monthrange(year, month)[1]


def add_months(day: date, months: int) -> date:
    """Return the same day of the month so many months later (or earlier).

    Where that month is too short, it is its last day: one month after 31 January is the last day of February.
    """
    month = day.month - 1 + months
    return day.replace(year=day.year + month // 12, month=month % 12 + 1)


def quarter(day: date) -> int:
    """Return the quarter, 1 to 4, that a day lies in."""
    return (day.month - 1) // 3 + 1


def each_day(first: date, last: date) -> Iterator[date]:
    """Yield the days from the first to the last, both included."""
    day = first
    while day <= last:
        yield day
        day += timedelta(days=1)


def working_days(first: date, last: date, holidays: Collection[date] = ()) -> int:
    """Count Monday to Friday between two days, both included, without the holidays."""
    return sum(1 for day in each_day(first, last) if day.weekday() < SATURDAY and day not in holidays)


def ordinal(number: int) -> str:
    """Write a day of the month as one says it: 1st, 2nd, 3rd, 11th, 22nd."""
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"


def spoken(day: date) -> str:
    """Write a date as in "3rd of March 2026"."""
    return f"{ordinal(day.day)} of {calendar.month_name[day.month]} {day.year}"
