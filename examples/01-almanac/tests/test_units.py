import pytest

from almanac import units


def test_lengths_convert_both_ways():
    assert units.convert(1, "mi", "km") == pytest.approx(1.609344)
    assert units.convert(units.convert(3, "ft", "cm"), "cm", "ft") == pytest.approx(3)


def test_unknown_lengths_are_refused():
    with pytest.raises(ValueError, match="parsec"):
        units.convert(1, "parsec", "m")


def test_temperatures():
    assert units.fahrenheit(100) == 212
    assert units.celsius(32) == 0


@pytest.mark.parametrize(
    ("count", "written"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 1024**3, "5.0 GiB")],
)
def test_human_bytes(count, written):
    assert units.human_bytes(count) == written


@pytest.mark.parametrize(
    ("written", "count"),
    [("12 B", 12), ("12", 12), ("1.5 KiB", 1536), ("2GiB", 2 * 1024**3), (" 3 mib ", 3 * 1024**2)],
)
def test_parse_bytes_reads_what_people_write(written, count):
    assert units.parse_bytes(written) == count


@pytest.mark.parametrize("count", [0, 7, 1024, 1536, 3 * 1024**4])
def test_parse_bytes_reads_what_human_bytes_writes(count):
    assert units.parse_bytes(units.human_bytes(count)) == count


@pytest.mark.parametrize("written", ["", "many", "-1 B", "1 XiB", "1.2.3 KiB"])
def test_parse_bytes_refuses_everything_else(written):
    with pytest.raises(ValueError):
        units.parse_bytes(written)
