"""Events out of bytes, and well-formed messages out of broken streams: any chunking, any cut."""

import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jiter import from_json

from claudecluster.gateway.provider import Cause, Failure
from claudecluster.gateway.stream.splice import Splicer
from claudecluster.gateway.stream.sse import Frame, Frames, TooLong, parse, write
from claudecluster.gateway.stream.tally import Tally

KINDS = ("text", "thinking", "tool_use", "server_tool_use")


def block(index: int, kind: str, pieces: list[str]) -> list[dict[str, Any]]:
    start: dict[str, Any] = {"type": kind} | ({"id": f"toolu_{index}", "name": "Bash", "input": {}} if "tool" in kind else {kind: ""})
    if "tool" in kind:
        whole = json.dumps({"command": "".join(pieces)})
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ["", whole[:5], whole[5:]]]
    else:
        deltas = [{"type": f"{kind}_delta", kind: piece} for piece in pieces]
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def message(blocks: list[tuple[str, list[str]]], name: str = "msg_1") -> list[dict[str, Any]]:
    stop = "tool_use" if any(kind == "tool_use" for kind, _ in blocks) else "end_turn"
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": name, "model": "m", "usage": {"input_tokens": 3, "output_tokens": 1}}}
    ]
    for index, (kind, pieces) in enumerate(blocks):
        events += block(index, kind, pieces)
        events.append({"type": "ping"})
    events.append({"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": {"output_tokens": 9}})
    return [*events, {"type": "message_stop"}]


def wire(events: list[dict[str, Any]]) -> bytes:
    return b"".join(write(event["type"], event) for event in events)


BLOCKS = st.lists(st.tuples(st.sampled_from(KINDS), st.lists(st.text(max_size=6), min_size=1, max_size=3)), min_size=1, max_size=4)


def spliced(splicer: Splicer, data: bytes) -> bytes:
    """Splice as the relay does."""
    return b"".join(raw if splicer.plain(raw) else splicer.feed(parse(raw)) for raw in Frames().cut(data))


def read(data: bytes) -> list[dict[str, Any]]:
    frames = Frames()
    events = [frame.json() for frame in frames.feed(data) if frame.data]
    assert frames.rest() == b""
    return events


def well_formed(data: bytes, *, gaps: bool = False) -> list[dict[str, Any]]:
    """Assert that a client could take this as one whole message; return its events."""
    events = [event for event in read(data) if event["type"] != "ping"]
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "message_stop"
    assert events[-2]["type"] == "message_delta"
    assert events[-2]["delta"]["stop_reason"]
    ends = [event["type"] for event in events].index("message_delta")
    assert {event["type"] for event in events[ends:-1]} == {"message_delta"}
    expected, current = 0, None
    for event in events[1:ends]:
        match event["type"]:
            case "content_block_start":
                assert current is None
                assert event["index"] == expected or (gaps and event["index"] > expected)
                current = event["index"]
                expected = current + 1
            case "content_block_delta":
                assert event["index"] == current
            case "content_block_stop":
                assert event["index"] == current
                current = None
            case other:
                pytest.fail(f"{other} inside a message")
    assert current is None
    return events


def tools(events: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Return the inputs of whole tool calls, and the number of halves."""
    kinds = {event["index"]: event["content_block"]["type"] for event in events if event["type"] == "content_block_start"}
    inputs: dict[int, str] = {index: "" for index, kind in kinds.items() if kind == "tool_use"}
    for event in events:
        if event["type"] == "content_block_delta" and event["index"] in inputs:
            inputs[event["index"]] += event["delta"]["partial_json"]
    whole, halves = [], 0
    for text in inputs.values():
        try:
            whole.append(json.loads(text))
        except ValueError:
            halves += 1
    return whole, halves


@settings(max_examples=60, deadline=None)
@given(st.data(), BLOCKS, st.sampled_from([b"\n", b"\r\n"]))
def test_any_chunking_gives_the_same_events_and_loses_no_byte(
    data: st.DataObject, blocks: list[tuple[str, list[str]]], newline: bytes
) -> None:
    sent = wire(message(blocks)).replace(b"\n", newline) + b"event: pi"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=12)))
    frames = Frames()
    got: list[Frame] = []
    for start, end in pairwise([0, *cuts, len(sent)]):
        got += frames.feed(sent[start:end])
    assert b"".join(frame.raw for frame in got) + frames.rest() == sent
    assert [frame.json()["type"] for frame in got] == [event["type"] for event in message(blocks)]


@settings(max_examples=60, deadline=None)
@given(BLOCKS)
def test_a_whole_stream_passes_byte_for_byte(blocks: list[tuple[str, list[str]]]) -> None:
    sent = b": hello\n\n" + wire(message(blocks)) + b": bye\n\n"
    splicer = Splicer()
    assert spliced(splicer, sent) == sent
    assert splicer.finished


@settings(max_examples=60, deadline=None)
@given(st.data(), BLOCKS, BLOCKS)
def test_wherever_a_stream_is_cut_the_client_gets_one_well_formed_message(
    data: st.DataObject, first: list[tuple[str, list[str]]], second: list[tuple[str, list[str]]]
) -> None:
    sent = wire(message(first))
    cut = data.draw(st.integers(0, len(sent)))
    splicer = Splicer()
    out = spliced(splicer, sent[:cut])
    complete = splicer.finished
    shown_tools = splicer.tools
    if splicer.committed:
        out += splicer.end()
        events = well_formed(out)
        reason = events[-2]["delta"]["stop_reason"]
        whole, halves = tools(events)
        if not complete and b'"stop_reason":"' not in sent[:cut]:
            assert reason == ("tool_use" if whole else "max_tokens")
        assert halves <= 1
        assert bool(whole) == splicer.tools
        assert splicer.tools >= shown_tools
    else:
        out += splicer.resume()
        out += spliced(splicer, wire(message(second, "msg_2")))
        events = well_formed(out)
        assert splicer.finished
        kinds = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
        assert kinds[len(kinds) - len(second) :] == [kind for kind, _ in second]
        assert set(kinds[: len(kinds) - len(second)]) <= {"thinking", "text"}
        assert tools(events)[0] == tools(read(wire(message(second))))[0]


@settings(max_examples=60, deadline=None)
@given(st.data(), BLOCKS)
def test_whatever_a_broken_upstream_sends_the_client_gets_a_well_formed_message(
    data: st.DataObject, blocks: list[tuple[str, list[str]]]
) -> None:
    events = message(blocks)
    order = data.draw(st.lists(st.integers(0, len(events) - 1), max_size=2 * len(events)))
    splicer = Splicer()
    out: list[bytes] = []
    with suppress(Failure):
        for raw in Frames().cut(wire([events[0], *(events[n] for n in order)])):
            out.append(raw if splicer.plain(raw) else splicer.feed(parse(raw)))  # noqa: PERF401 - what came before a Failure counts
    out.append(splicer.end())
    well_formed(b"".join(out), gaps=True)


def test_half_a_tool_call_beside_a_whole_one_can_be_parsed_by_nobody() -> None:
    sent = wire(message([("tool_use", ["ls"]), ("tool_use", ["rm -rf /tmp/x"])]))
    splicer = Splicer()
    out = b"".join(splicer.feed(frame) for frame in Frames().feed(sent[: sent.rindex(b'{"type":"content_block_delta"')]))
    out += splicer.end()
    shown = well_formed(out)
    assert shown[-2]["delta"]["stop_reason"] == "tool_use"
    assert tools(shown) == ([{"command": "ls"}], 1)
    half = "".join(event["delta"]["partial_json"] for event in shown if event.get("index") == 1 and "delta" in event)
    with pytest.raises(ValueError, match=r"control character|key must be"):
        from_json(half.encode(), partial_mode=True)  # the lenient way of Anthropic's own SDK


def test_half_a_tool_call_alone_ends_as_a_real_one_would_at_its_token_limit() -> None:
    sent = wire(message([("tool_use", ["rm -rf /tmp/x"])]))
    splicer = Splicer()
    out = b"".join(splicer.feed(frame) for frame in Frames().feed(sent[: sent.rindex(b'{"type":"content_block_delta"')]))
    shown = well_formed(out + splicer.end())
    assert shown[-2]["delta"]["stop_reason"] == "max_tokens"
    assert tools(shown) == ([], 1)


@pytest.mark.parametrize("bad", ['"text":"a', '"text":"a\\q"}}', '"text":"a"}', '"text":1]}', "x"])
def test_a_broken_delta_is_found_even_among_plain_ones(bad: str) -> None:
    events = message([("text", ["a", "b", "c"])])
    good = write("content_block_delta", events[2])
    splicer = Splicer()
    spliced(splicer, wire(events[:3]) + good)
    assert splicer.plain(good)
    broken = good[: good.index(b'"text":')] + bad.encode() + b"\n\n"
    assert not splicer.plain(broken)
    with pytest.raises(Failure):
        splicer.feed(parse(broken))


def test_a_tool_call_without_any_input_yet_is_not_shown() -> None:
    events = message([("tool_use", ["ls"])])
    splicer = Splicer()
    out = b"".join(splicer.feed(frame) for frame in Frames().feed(wire(events[:3])))
    assert b"tool_use" not in out
    assert not splicer.committed


def test_an_error_event_is_a_failure_that_names_its_type() -> None:
    splicer = Splicer()
    frame = Frames().feed(b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n')[0]
    with pytest.raises(Failure) as caught:
        splicer.feed(frame)
    assert (caught.value.cause, caught.value.type, caught.value.message) == (Cause.ERROR_EVENT, "overloaded_error", "Overloaded")


def test_an_endless_event_is_refused() -> None:
    frames = Frames(limit=1000)
    frames.feed(b"x" * 999)
    with pytest.raises(TooLong):
        frames.feed(b"xx")


def test_events_of_kinds_yet_unknown_pass_through() -> None:
    splicer = Splicer()
    sent = wire([message([("text", ["a"])])[0], {"type": "event_of_2030", "x": 1}])
    assert b"".join(splicer.feed(frame) for frame in Frames().feed(sent)) == sent


def test_counts_are_cumulative_and_tiers_are_told_apart() -> None:
    tally = Tally()
    usage = {
        "input_tokens": 5,
        "output_tokens": 1,
        "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
    }
    tally.event({"type": "message_start", "message": {"id": "m", "model": "c", "usage": usage}})
    tally.event({"type": "message_delta", "usage": {"output_tokens": 4}})
    tally.event(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": 9, "input_tokens": 6, "cache_creation_input_tokens": 30},
        }
    )
    used = tally.usage()
    assert (used.input_tokens, used.output_tokens) == (6, 9)
    assert (used.cache_creation_5m_input_tokens, used.cache_creation_1h_input_tokens) == (10, 20)
