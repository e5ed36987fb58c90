"""A local server's stream becomes a well-formed Anthropic stream, whatever its chunks and whatever small models do to JSON."""

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from claudecluster.gateway.local.replies.calls import Catalogue, Settled, Unusable
from claudecluster.gateway.local.replies.deltas import Broke, Called, Counted, Delta, Ended, Said, Thought
from claudecluster.gateway.local.replies.from_anthropic import AnthropicReader
from claudecluster.gateway.local.replies.from_ollama import OllamaReader
from claudecluster.gateway.local.replies.from_openai import OpenAiReader
from claudecluster.gateway.local.replies.repair import mended
from claudecluster.gateway.local.replies.writing import SILENCE, Event, Writer, folded, sse
from claudecluster.gateway.local.requests.conversation import Tool
from claudecluster.testing.ollama_wires import WIRES, Reply, ToolCall


def tool(name: str, required: Sequence[str] = (), **properties: str) -> Tool:
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}, "required": list(required)}
    return Tool(name, "", schema)


TOOLS = (
    tool("Bash", ["command"], command="string", timeout="number", run_in_background="boolean"),
    tool("Read", ["file_path"], file_path="string", offset="integer"),
    tool("Write", ["file_path", "content"], file_path="string", content="string"),
    tool("TodoWrite", ["todos"], todos="array"),
    tool("Task", ["options"], options="object"),
)
CATALOGUE = Catalogue(TOOLS)


def told(deltas: Iterable[Delta], **more: Any) -> dict[str, Any]:
    """Return the message a client would put together from these deltas."""
    writer = Writer("msg_1", "m", CATALOGUE, 100, **more)
    events = [event for delta in deltas for event in writer.feed(delta)]
    events += writer.close()
    well_formed(events)
    return folded(events)


def well_formed(events: list[Event]) -> None:
    """Assert the order the Messages API promises."""
    assert events[0]["type"] == "message_start"
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    open_block, index, text = "", 0, ""
    for event in events[1:-2]:
        match event["type"]:
            case "content_block_start":
                assert not open_block
                assert event["index"] == index
                open_block, text = event["content_block"]["type"], ""
                assert open_block in {"text", "tool_use"}
            case "content_block_delta":
                assert event["index"] == index
                text += event["delta"].get("text") or event["delta"].get("partial_json")
            case "content_block_stop":
                assert event["index"] == index
                assert text.strip()
                if open_block == "tool_use":
                    assert isinstance(orjson.loads(text), dict)
                open_block, index = "", index + 1
            case other:
                raise AssertionError(other)
    assert not open_block
    usage = events[-2]["usage"]
    assert {key for key, value in usage.items() if isinstance(value, int)} == {
        "input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens",
    }  # fmt: skip


def text_of(message: dict[str, Any]) -> str:
    return "".join(block["text"] for block in message["content"] if block["type"] == "text")


def uses_of(message: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(block["name"], block["input"]) for block in message["content"] if block["type"] == "tool_use"]


END = Ended()


def test_text_then_parallel_calls_then_usage() -> None:
    message = told(
        [Said("Let me "), Said("look."), Called("Bash", {"command": "ls"}), Called("Read", {"file_path": "/a"}), Counted(50, 9), END]
    )
    assert text_of(message) == "Let me look."
    assert uses_of(message) == [("Bash", {"command": "ls"}), ("Read", {"file_path": "/a"})]
    assert message["stop_reason"] == "tool_use"
    assert message["usage"] == {"input_tokens": 50, "output_tokens": 9, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}


def test_call_ids_are_the_same_when_replayed_and_differ_within_and_between_messages() -> None:
    def ids(message_id: str) -> list[str]:
        writer = Writer(message_id, "m", CATALOGUE)
        events = [event for command in "ab" for event in writer.feed(Called("Bash", {"command": command}))]
        return [event["content_block"]["id"] for event in events if event["type"] == "content_block_start"]

    assert ids("msg_1") == ids("msg_1")
    assert len({*ids("msg_1"), *ids("msg_2")}) == 4
    assert all(key.startswith("toolu_") for key in ids("msg_1"))


def test_running_out_of_room_is_max_tokens() -> None:
    assert told([Said("half an ans"), Ended(length=True)])["stop_reason"] == "max_tokens"


def test_a_stop_sequence_the_server_names_is_passed_on() -> None:
    message = told([Said("x"), Ended(stop="END")])
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")


def test_thinking_is_never_shown() -> None:
    message = told([Thought(), Said("<think>secret plan"), Said("</think>\n\nHello"), END])
    assert message["content"] == [{"type": "text", "text": "Hello"}]


def test_only_one_call_passes_where_parallel_calls_are_disabled() -> None:
    assert len(uses_of(told([Called("Bash", {"command": "a"}), Called("Bash", {"command": "b"}), END], parallel=False))) == 1


def test_an_empty_answer_says_so_for_clients_refuse_empty_messages() -> None:
    assert text_of(told([Said("\n \n"), END])) == SILENCE


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ('{"command": "ls",}', {"command": "ls"}),
        ("{'command': 'echo \"hi\"', 'run_in_background': True}", {"command": 'echo "hi"', "run_in_background": True}),
        ('{"command": "a\nb\tc"}', {"command": "a\nb\tc"}),
        ('{"command": "ls"', {"command": "ls"}),
        ('{"command": "ls", "x": [1, {"y": 2', {"command": "ls", "x": [1, {"y": 2}]}),
        ('```json\n{"command": "ls"}\n```', {"command": "ls"}),
        ('"{\\"command\\": \\"ls\\"}"', {"command": "ls"}),
        ('{"parameters": {"command": "ls"}}', {"command": "ls"}),
        ('{"arguments": "{\\"command\\": \\"ls\\"}"}', {"command": "ls"}),
        ('{"name": "Bash", "arguments": {"command": "ls"}}', {"command": "ls"}),
        ('[{"command": "ls"}]', {"command": "ls"}),
        ('{command: "ls"}', {"command": "ls"}),
        ('{"command": "ls"} I hope this helps', {"command": "ls"}),
        ('Sure: {"command": "ls"}', {"command": "ls"}),
        ('{"Command": "ls", "timeout": "5", "runInBackground": "false"}', {"command": "ls", "timeout": 5, "run_in_background": False}),
        ("", {}),
        ("null", {}),
    ],
)
def test_common_damage_to_arguments_is_mended(raw: str, expected: dict[str, Any]) -> None:
    assert CATALOGUE.settle(Called("Bash", raw)) == Settled("Bash", expected)


@pytest.mark.parametrize("raw", ['{"command": "rm -rf /tmp/x', "ls -la", '{"command": "a", "b', "[1, 2]"])
def test_what_was_cut_off_or_cannot_be_told_is_never_guessed(raw: str) -> None:
    assert isinstance(CATALOGUE.settle(Called("Bash", raw)), Unusable)


def test_half_a_call_is_not_mended_when_the_model_ran_out_of_room() -> None:
    assert isinstance(CATALOGUE.settle(Called("Write", '{"file_path": "/a", "content": "x"', cut=True)), Unusable)
    assert CATALOGUE.settle(Called("Write", '{"file_path": "/a"}', cut=True)) == Settled("Write", {"file_path": "/a"})


def test_values_take_the_type_the_tool_asks_for() -> None:
    assert CATALOGUE.settle(Called("TodoWrite", {"todos": '[{"a": 1}]'})) == Settled("TodoWrite", {"todos": [{"a": 1}]})
    assert CATALOGUE.settle(Called("Task", {"options": "{'a': 1}"})) == Settled("Task", {"options": {"a": 1}})
    assert CATALOGUE.settle(Called("Write", {"file_path": "/a.json", "content": {"a": 1}})) == Settled(
        "Write", {"file_path": "/a.json", "content": '{\n  "a": 1\n}'}
    )
    assert CATALOGUE.settle(Called("Bash", {"command": "[1, 2]"})) == Settled("Bash", {"command": "[1, 2]"})


def test_arguments_that_fit_are_left_as_they_are() -> None:
    given_arguments = {"command": "echo '{\"a\": 1,}'", "unknown": {"x": None}}
    assert CATALOGUE.settle(Called("Bash", given_arguments)) == Settled("Bash", given_arguments)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bash", "Bash"), ("BASH", "Bash"), ("functions.Bash", "Bash"), ("read_file", "Read"), ("todo_write", "TodoWrite"),
        ("Wrte", "Write"), ("run bash", "Bash"), ("frobnicate it", "frobnicate_it"),
    ],
)  # fmt: skip
def test_names_nearly_right_are_understood(name: str, expected: str) -> None:
    settled = CATALOGUE.settle(Called(name, {}))
    assert settled.name == expected


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "Bash", "arguments": {"command": "ls"}}\n</tool_call>',
        '<tool_call>{"name": "Bash", "arguments": {"command": "ls"}}',
        "<tool_call>{'name': 'bash', 'parameters': {'command': 'ls'}}</tool_call>",
        "<function=Bash>\n<parameter=command>\nls\n</parameter>\n</function>",
        "<tool_call>\n<function=Bash>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>Bash\n<arg_key>command</arg_key>\n<arg_value>ls</arg_value>\n</tool_call>",
        '[TOOL_CALLS] [{"name": "Bash", "arguments": {"command": "ls"}}]',
        '{"name": "Bash", "parameters": {"command": "ls"}}',
        '```json\n{"name": "Bash", "arguments": {"command": "ls"}}\n```',
        '\n[{"name": "Bash", "arguments": {"command": "ls"}}]',
        '{"type": "function", "function": {"name": "Bash", "arguments": "{\\"command\\": \\"ls\\"}"}}',
        '<think>I should look</think>\n{"name": "Bash", "arguments": {"command": "ls"}}',
    ],
)
def test_calls_written_as_text_are_made(text: str) -> None:
    for size in (1, 7, len(text)):
        message = told([*(Said(text[at : at + size]) for at in range(0, len(text), size)), END])
        assert uses_of(message) == [("Bash", {"command": "ls"})]
        assert text_of(message) == ""
        assert message["stop_reason"] == "tool_use"


def test_several_written_calls_and_words_around_them() -> None:
    call = '<tool_call>{"name": "Bash", "arguments": {"command": "ls"}}</tool_call>'
    message = told([Said(f"First.\n{call}\n{call}\nDone."), END])
    assert [block["type"] for block in message["content"]] == ["text", "tool_use", "tool_use", "text"]
    assert text_of(message) == "First.\nDone."


@pytest.mark.parametrize(
    "text",
    [
        'The answer is {"name": "Bash"}.',
        '{"title": "A JSON answer", "name": "x"}',
        '{"name": "Ada", "age": 36}',
        'Write `<tool_call>{"name": "Bash"}</tool_call>` to call a tool.',
        "a < b and <tool",
        "<tool_call>is a tag</tool_call>",
        "```python\nprint(1)\n```",
        "[link](x) and [TOOL",
        "{",
        "`x`",
    ],
)
def test_what_only_looks_like_a_call_stays_text(text: str) -> None:
    for size in (1, 5, len(text)):
        message = told([*(Said(text[at : at + size]) for at in range(0, len(text), size)), END])
        assert uses_of(message) == []
        assert text_of(message) == text


def test_text_is_not_held_back_longer_than_it_may_become_a_call() -> None:
    writer = Writer("msg_1", "m", CATALOGUE)
    events = writer.feed(Said("Hello <b>you</b>"))
    assert "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta") == "Hello <b>you</b>"


def test_an_unusable_call_asks_for_a_second_try_and_is_shown_if_that_fails_too() -> None:
    writer = Writer("msg_1", "m", CATALOGUE)
    writer.feed(Called("Bash", '{"command": "half'))
    writer.feed(END)
    assert writer.failed
    message = told([Called("Bash", '{"command": "half'), END])
    assert uses_of(message) == []
    assert '{"command": "half' in text_of(message)
    assert message["stop_reason"] == "end_turn"


def test_a_server_that_does_not_count_is_counted_for() -> None:
    usage = told([Said("x" * 400), END])["usage"]
    assert usage["input_tokens"] == 100
    assert usage["output_tokens"] == 100


def test_sse_is_written_as_anthropic_does() -> None:
    assert sse([{"type": "message_stop"}]) == b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


READERS = {"chat": OllamaReader, "openai": OpenAiReader, "anthropic": AnthropicReader}
REPLY = Reply(
    'Grüße 🙂 <tool_call>{"name": "Read", "arguments": {"file_path": "/b"}}</tool_call> and\r\n\r\nmore',
    calls=(ToolCall("Bash", {"command": "echo 'ü'\n\n"}), ToolCall("Write", {"file_path": "/a", "content": "data: x\n\nevent: y"})),
    thinking="hmm",
)


def deltas_of(wire: str, pieces: Iterable[bytes]) -> list[Delta]:
    reader = READERS[wire]()
    return [delta for piece in pieces for delta in reader.feed(piece)] + reader.close()


def test_the_three_wires_say_the_same() -> None:
    messages = [told(deltas_of(wire, WIRES[wire].stream(REPLY, "m", 55))) for wire in READERS]
    assert messages[0] == messages[1] == messages[2]
    assert [name for name, _ in uses_of(messages[0])] == ["Read", "Bash", "Write"]
    assert messages[0]["usage"]["input_tokens"] == 55


@given(st.sampled_from(sorted(READERS)), st.lists(st.integers(1, 60), min_size=1, max_size=400))
def test_chunks_of_the_upstream_do_not_matter(wire: str, sizes: list[int]) -> None:
    data = b"".join(WIRES[wire].stream(REPLY, "m", 55))
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    pieces.append(data[at:])
    assert deltas_of(wire, pieces) == deltas_of(wire, [data])


tricky = st.lists(
    st.sampled_from(
        [
            "<tool_call>", "</tool_call>", "<function=Bash>", "</function>", "[TOOL_CALLS]", "<think>", "</think>", "<", "`", '"', "\n", " ",
            '{"name": "Bash", "arguments": {"command": "ls"}}', '{"name": ', "[", "{", "}", "```json\n", "words", "<tool", "_call>", "[TOOL",
        ]
    ),
    max_size=12,
)  # fmt: skip


anything = st.lists(
    st.one_of(
        tricky.map(lambda parts: Said("".join(parts))),
        st.text(max_size=9).map(Said),
        st.builds(
            Called,
            st.sampled_from(["Bash", "read_file", "", "no such tool!"]),
            st.text(max_size=20) | st.dictionaries(st.text(), st.text()),
        ),
        st.builds(Counted, st.none() | st.integers(0, 9), st.none() | st.integers(0, 9)),
        st.just(Thought()),
    ),
    max_size=12,
)


@given(anything, st.booleans(), st.booleans(), st.booleans())
def test_whatever_comes_in_a_well_formed_message_comes_out(deltas: list[Delta], parallel: bool, length: bool, ended: bool) -> None:
    message = told([*deltas, *([Ended(length=length)] if ended else [])], parallel=parallel)
    assert message["content"]
    calls = len(uses_of(message))
    assert parallel or calls <= 1
    assert message["stop_reason"] == ("max_tokens" if length and ended else "tool_use" if calls else "end_turn")


@given(tricky, st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_pieces_of_the_text_do_not_matter(parts: list[str], sizes: list[int]) -> None:
    text = "".join(parts)
    pieces, at, turn = [], 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        pieces.append(Said(text[at : at + size]))
        at, turn = at + size, turn + 1
    assert told([*pieces, END]) == told([*([Said(text)] if text else []), END])


@given(st.text(max_size=200))
def test_any_text_without_a_call_comes_out_as_it_is(text: str) -> None:
    assume(text.strip() and not text.lstrip().startswith("<think"))
    assert text_of(told([Said(text), END])) == text.lstrip("\n")


@given(
    st.dictionaries(
        st.text(max_size=8), st.recursive(st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=9), st.lists, max_leaves=5)
    )
)
def test_valid_json_is_never_changed_by_mending(value: dict[str, Any]) -> None:
    assert mended(orjson.dumps(value).decode()) == value


@pytest.mark.parametrize(
    ("wire", "data"),
    [
        ("chat", b'{"message":{"role":"assistant","content":"a"},"done":false}\n{"error":"an error was encountered"}\n'),
        ("openai", b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: {"error":{"message":"an error was encountered"}}\n\n'),
        ("anthropic", b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"an error was encountered"}}\n\n'),
    ],
)
def test_an_error_inside_a_200_is_seen(wire: str, data: bytes) -> None:
    assert deltas_of(wire, [data])[-1] == Broke("an error was encountered")


@pytest.mark.parametrize("wire", sorted(READERS))
def test_a_cut_stream_never_looks_finished(wire: str) -> None:
    pieces = WIRES[wire].stream(Reply("Hello, this is long enough"), "m", 5)
    ends = {"chat": 1, "openai": 3, "anthropic": 1}[wire]
    assert not any(isinstance(delta, Ended) for delta in deltas_of(wire, pieces[:-ends]))


def test_calls_that_all_carry_index_0_are_told_apart_by_their_ids() -> None:
    def chunk(**call: Any) -> bytes:
        return b"data: " + orjson.dumps({"choices": [{"delta": {"tool_calls": [call]}}]}) + b"\n\n"

    pieces = [
        chunk(index=0, id="a", function={"name": "Bash", "arguments": '{"command": '}),
        chunk(index=0, function={"arguments": '"ls"}'}),
        chunk(index=0, id="b", function={"name": "Read", "arguments": '{"file_path": "/a"}'}),
        b'data: {"choices":[{"delta":{},"finish_reason":"tool_calls"}]}\n\ndata: [DONE]\n\n',
    ]
    assert uses_of(told(deltas_of("openai", pieces))) == [("Bash", {"command": "ls"}), ("Read", {"file_path": "/a"})]
