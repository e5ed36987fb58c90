"""A request for a summary is made to fit a small window, openly; no other request is touched."""

from hypothesis import given
from hypothesis import strategies as st

from claudecluster.gateway.local.estimate import raw
from claudecluster.gateway.local.requests.conversation import Call, Conversation, Line, Picture, Tool
from claudecluster.gateway.local.requests.shrinking import asks_for_summary, shrunk

ASKING = Line("user", "Write an <analysis> block followed by a <summary> block.")
TOOLS = (Tool("Bash", "d" * 4000, {"type": "object"}),)


def talk(*lines: Line) -> Conversation:
    return Conversation((Line("system", "You are X."), *lines, ASKING), TOOLS)


def test_only_a_request_for_a_summary_is_one() -> None:
    assert asks_for_summary(talk())
    assert not asks_for_summary(Conversation((ASKING, Line("assistant", "<analysis>..</analysis><summary>..</summary>"))))
    assert not asks_for_summary(Conversation((Line("user", "write a summary"),)))
    assert not asks_for_summary(Conversation(()))


def test_tools_and_images_go_first() -> None:
    small = shrunk(talk(Line("user", "hello", (Picture("image/png", "x"),))), lambda one: raw(one) < 900)
    assert not small.tools
    assert [line.text for line in small.lines] == ["You are X.", "hello", ASKING.text]
    assert not any(line.pictures for line in small.lines)


def test_the_longest_messages_are_cut_in_their_middle_and_say_so() -> None:
    start, end = "begin " * 50, " end" * 50
    long = Line("tool", start + "x" * 100_000 + end, call_id="t", tool="Bash")
    written = Line("assistant", calls=(Call("t", "Write", {"content": "y" * 100_000, "n": 3}),))
    small = shrunk(talk(Line("user", "short"), written, long), lambda one: raw(one) < 5000)
    assert raw(small) < 5000
    assert raw(small) > 4000  # no more is lost than must be
    assert small.lines[1].text == "short"
    assert small.lines[3].text.startswith(start)
    assert small.lines[3].text.endswith(end)
    assert "characters left out here" in small.lines[3].text
    assert small.lines[2].calls[0].arguments["n"] == 3
    assert small.lines[-1] == ASKING


@given(st.lists(st.integers(0, 20_000), max_size=6), st.integers(500, 20_000))
def test_it_fits_whenever_short_messages_would(sizes: list[int], limit: int) -> None:
    conversation = talk(*(Line("user", "z" * size) for size in sizes))
    small = shrunk(conversation, lambda one: raw(one) <= limit)
    assert len(small.lines) == len(conversation.lines)
    least = talk(*(Line("user", "z" * min(size, 700)) for size in sizes))
    if raw(Conversation(least.lines)) <= limit:
        assert raw(small) <= limit
