from datetime import date

import pytest

from almanac.dates import add_months, days_in_month, ordinal, quarter, spoken, working_days


def test_days_in_month_knows_leap_years():
    assert days_in_month(2024, 2) == 29
    assert days_in_month(2026, 2) == 28


@pytest.mark.parametrize(
    ("months", "expected"),
    [(1, date(2026, 4, 15)), (10, date(2027, 1, 15)), (-3, date(2025, 12, 15)), (0, date(2026, 3, 15))],
)
def test_add_months_keeps_the_day(months, expected):
    assert add_months(date(2026, 3, 15), months) == expected


@pytest.mark.parametrize(
    ("day", "months", "expected"),
    [
        (date(2026, 1, 31), 1, date(2026, 2, 28)),
        (date(2024, 1, 31), 1, date(2024, 2, 29)),
        (date(2026, 8, 31), -2, date(2026, 6, 30)),
        (date(2024, 2, 29), 12, date(2025, 2, 28)),
    ],
)
def test_add_months_stops_at_the_end_of_a_short_month(day, months, expected):
    assert add_months(day, months) == expected


def test_quarter():
    assert [quarter(date(2026, month, 1)) for month in (1, 3, 4, 12)] == [1, 1, 2, 4]


def test_working_days_leave_out_weekends_and_holidays():
    first, last = date(2026, 5, 1), date(2026, 5, 10)
    assert working_days(first, last) == 6
    assert working_days(first, last, holidays={first}) == 5


def test_spoken_dates():
    assert [ordinal(day) for day in (1, 2, 3, 11, 12, 13, 21)] == ["1st", "2nd", "3rd", "11th", "12th", "13th", "21st"]
    assert spoken(date(2026, 3, 3)) == "3rd of March 2026"
