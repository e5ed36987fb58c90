from almanac.tables import render


def test_text_stands_to_the_left_and_a_rule_under_the_header():
    lines = render(["name", "town"], [["Ada", "London"], ["Grace", "New York"]]).splitlines()
    assert [line.rstrip() for line in lines] == ["name   town", "-----  --------", "Ada    London", "Grace  New York"]


def test_numbers_stand_to_the_right_with_their_headers():
    lines = render(["item", "count"], [["nails", 1200], ["saws", 3]]).splitlines()
    assert lines == ["item   count", "-----  -----", "nails   1200", "saws       3"]


def test_fractions_have_two_decimals_and_line_up():
    lines = render(["a", "share"], [["x", 0.5], ["y", 12.25]]).splitlines()
    assert lines[2:] == ["x   0.50", "y  12.25"]


def test_no_line_ends_in_blanks():
    assert all(line == line.rstrip() for line in render(["a", "b"], [["x", "long text"], ["y", ""]]).splitlines())


def test_long_cells_are_truncated_to_the_widest_allowed():
    lines = render(["note"], [["abcdefghij"]], widest=6).splitlines()
    assert lines == ["note", "------", "abcde…"]
