import pytest

from almanac.text import enumerate_words, initials, plain, slugify, squeeze, truncate, wrap


def test_squeeze_leaves_single_blanks():
    assert squeeze("  a \n b\t\tc ") == "a b c"


def test_plain_drops_marks():
    assert plain("Ångström, naïve") == "Angstrom, naive"


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("Hello", "hello"),
        ("Hello, World!", "hello-world"),
        ("  two  words ", "two-words"),
        ("Crème brûlée", "creme-brulee"),
        ("2026: a year -- or two?", "2026-a-year-or-two"),
        ("!!!", ""),
    ],
)
def test_slugify_keeps_words_and_single_hyphens(text, slug):
    assert slugify(text) == slug


@pytest.mark.parametrize(
    ("words", "said"),
    [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")],
)
def test_enumerate_words_reads_well(words, said):
    assert enumerate_words(words) == said


def test_wrap_breaks_between_words():
    assert wrap("the quick brown fox", 10) == ["the quick", "brown fox"]
    assert wrap("an extraordinarily long word", 6) == ["an", "extraordinarily", "long", "word"]


def test_truncate_returns_what_fits():
    assert truncate("abc", 4) == "abc"
    assert truncate("abcd", 4) == "abcd"


def test_truncate_never_exceeds_its_width():
    assert truncate("abcdef", 4) == "abc…"
    assert truncate("abcdef", 1) == "…"


def test_truncate_leaves_no_blank_before_the_ellipsis():
    assert truncate("one two", 5) == "one…"


def test_initials():
    assert initials("ada king lovelace") == "A. K. L."
