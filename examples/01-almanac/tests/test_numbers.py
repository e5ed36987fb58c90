import pytest

from almanac.numbers import digits, from_roman, mean, median, running_total, spread, to_roman


def test_mean_of_some_values():
    assert mean([1, 2, 6]) == 3


@pytest.mark.parametrize("of", [mean, median, spread])
def test_statistics_of_nothing_are_refused(of):
    with pytest.raises(ValueError):
        of([])


def test_median_of_an_odd_number_of_values():
    assert median([9, 1, 5]) == 5


def test_median_of_an_even_number_of_values_lies_between_the_middle_two():
    assert median([1, 2]) == 1.5
    assert median([10, 1, 4, 2]) == 3


def test_median_of_whole_numbers_keeps_its_fraction():
    assert median([0, 1, 2, 9]) == 1.5


def test_spread_is_the_whole_range():
    assert spread([4, -1, 2]) == 5


def test_running_total_grows_value_by_value():
    assert running_total([1, 2, 3]) == [1, 3, 6]


def test_digits_come_most_significant_first():
    assert digits(1205) == [1, 2, 0, 5]
    assert digits(-6, base=2) == [1, 1, 0]


@pytest.mark.parametrize(("number", "written"), [(1, "I"), (8, "VIII"), (60, "LX"), (2026, "MMXXVI")])
def test_to_roman_adds_letters(number, written):
    assert to_roman(number) == written


@pytest.mark.parametrize(("number", "written"), [(4, "IV"), (9, "IX"), (14, "XIV"), (400, "CD"), (1990, "MCMXC")])
def test_to_roman_subtracts_where_it_is_shorter(number, written):
    assert to_roman(number) == written


@pytest.mark.parametrize("number", [1, 4, 49, 944, 3999])
def test_to_roman_and_back(number):
    written = to_roman(number)
    assert from_roman(written) == number
    assert not any(letter * 4 in written for letter in "IXCM")


def test_from_roman_reads_small_letters():
    assert from_roman(" mcmxc ") == 1990
