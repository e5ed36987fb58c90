"""An Anthropic request, as Claude Code sends it, becomes what local servers understand."""

from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudecluster.gateway.local.requests import to_anthropic, to_ollama, to_openai
from claudecluster.gateway.local.requests.conversation import Conversation, Target
from claudecluster.gateway.local.requests.reading import read
from claudecluster.gateway.local.requests.schemas import plain
from claudecluster.gateway.local.requests.toolless import in_words
from claudecluster.model.errors import Refused

TARGET = Target("qwen3-coder:30b", context=32_768)
SEEING = Target("qwen3-vl:8b", vision=True)
PIXEL = "iVBORw0KGgo="
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
BASH = {
    "name": "Bash",
    "description": "Runs a command",
    "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"command": {"type": "string"}, "timeout": {"type": "number"}},
        "required": ["command"],
        "additionalProperties": False,
    },
}
CACHED = {"cache_control": {"type": "ephemeral"}}


def request(*messages: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "claude-opus-5-5", "max_tokens": 128_000, "messages": list(messages), **more}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": item} if isinstance(item, str) else item for item in content]}


def calls(*named: tuple[str, str, dict[str, Any]]) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "tool_use", "id": key, "name": name, "input": given} for key, name, given in named]}


def result(key: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": key, "content": content, **more}


def ollama(body: Mapping[str, Any], target: Target = TARGET) -> dict[str, Any]:
    return to_ollama.written(read(body, target), target)


def openai(body: Mapping[str, Any], target: Target = TARGET) -> dict[str, Any]:
    return to_openai.written(read(body, target), target, 1000)


def anthropic(body: Mapping[str, Any], target: Target = TARGET) -> dict[str, Any]:
    return to_anthropic.written(read(body, target), target, 1000)


def test_what_is_anthropics_own_does_not_reach_a_local_server() -> None:
    body = request(
        {"role": "user", "content": [{"type": "text", "text": "do it", **CACHED}], "output_config": {"effort": "medium"}},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hmm", "signature": "x"}, {"type": "text", "text": "Yes."}]},
        user("go on"),
        system=[{"type": "text", "text": "x-anthropic-billing-header: cc_version=2;"}, {"type": "text", "text": "You are X.", **CACHED}],
        thinking={"type": "adaptive", "display": "updates"},
        context_management={"edits": []},
        output_config={"effort": "medium"},
        metadata={"user_id": "{}"},
        betas=["a"],
        tools=[{**BASH, **CACHED}],
        stream=True,
    )
    for written in (ollama(body), openai(body), anthropic(body)):
        text = orjson.dumps(written).decode()
        for word in (
            "cache_control",
            "thinking",
            "hmm",
            "context_management",
            "output_config",
            "effort",
            "metadata",
            "betas",
            "billing",
            "$schema",
        ):
            assert word not in text
        assert "do it" in text
        assert "You are X." in text
        assert written["model"] == "qwen3-coder:30b"


def test_system_blocks_are_joined_with_blank_lines() -> None:
    body = request(user("hi"), system=[{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}])
    assert ollama(body)["messages"][0] == {"role": "system", "content": "One.\n\nTwo."}
    assert anthropic(body)["system"] == "One.\n\nTwo."


def test_system_messages_before_the_first_answer_join_the_system_text() -> None:
    body = request(user("do it"), {"role": "system", "content": [{"type": "text", "text": "# Environment"}]}, system="You are X.")
    assert [message["role"] for message in ollama(body)["messages"]] == ["system", "user"]
    assert ollama(body)["messages"][0]["content"] == "You are X.\n\n# Environment"


def test_a_later_system_message_stays_in_its_place_inside_the_users_turn() -> None:
    body = request(user("a"), {"role": "assistant", "content": "b"}, {"role": "system", "content": "New agents: x"}, user("c"))
    messages = ollama(body)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[2]["content"] == "<system-reminder>\nNew agents: x\n</system-reminder>\n\nc"


def test_ollama_is_told_to_cut_nothing_and_how_much_context_to_use() -> None:
    written = to_ollama.written(
        read(request(user("hi"), temperature=0.5, stop_sequences=["END"], top_k=3), TARGET), TARGET, keep_alive="30m"
    )
    assert written["truncate"] is False
    assert written["shift"] is False
    assert written["keep_alive"] == "30m"
    assert written["options"] == {"num_ctx": 32_768, "num_predict": 32_768, "temperature": 0.5, "top_k": 3, "stop": ["END"]}


def test_thinking_is_never_named_to_a_model_that_cannot_think() -> None:
    body = request(user("hi"), thinking={"type": "adaptive"}, output_config={"effort": "high"})
    assert "think" not in ollama(body)
    assert ollama(body, Target("qwen3:8b", thinking=True))["think"] is True
    assert ollama(request(user("hi")), Target("qwen3:8b", thinking=True))["think"] is False
    assert ollama(body, Target("gpt-oss:20b", thinking=True, levels=True))["think"] == "high"
    assert ollama(request(user("hi")), Target("gpt-oss:20b", thinking=True, levels=True))["think"] == "low"


def test_max_tokens_are_clamped_to_the_model() -> None:
    assert ollama(request(user("hi")), Target("m", max_output=8192))["options"]["num_predict"] == 8192
    assert openai(request(user("hi")), Target("m", max_output=8192))["max_tokens"] == 8192
    assert "max_tokens" not in openai(request(user("hi")))  # more than is left: the server counts what is left exactly
    assert anthropic(request(user("hi")))["max_tokens"] == int((32_768 - 1000) * 0.8)
    assert openai({**request(user("hi")), "max_tokens": 100})["max_tokens"] == 100


def test_openai_servers_are_asked_to_count() -> None:
    assert openai(request(user("hi")))["stream_options"] == {"include_usage": True}


def parallel() -> dict[str, Any]:
    return request(
        user("go"),
        calls(("toolu_1", "Bash", {"command": "ls"}), ("toolu_2", "Read", {"file_path": "/a"})),
        user(result("toolu_2", [{"type": "text", "text": "inside"}]), result("toolu_1", "Exit code 3", is_error=True), "Tool loaded."),
        tools=[BASH],
    )


def test_parallel_calls_and_their_results_keep_their_ids_and_say_when_they_failed() -> None:
    messages = ollama(parallel())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "user"]
    assert messages[1]["tool_calls"][1] == {"id": "toolu_2", "function": {"index": 1, "name": "Read", "arguments": {"file_path": "/a"}}}
    assert messages[2] == {"role": "tool", "content": "inside", "tool_name": "Read", "tool_call_id": "toolu_2"}
    assert messages[3]["content"] == "Error: Exit code 3"
    assert messages[4]["content"] == "Tool loaded."


def test_openai_takes_arguments_as_text_and_mistral_takes_the_ids() -> None:
    messages = openai(parallel())["messages"]
    assert messages[1]["content"] is None
    assert messages[1]["tool_calls"][0]["function"] == {"name": "Bash", "arguments": '{"command": "ls"}'}
    first, second = (call["id"] for call in messages[1]["tool_calls"])
    assert first != second
    assert len(first) == 9
    assert first.isalnum()
    assert messages[2] == {"role": "tool", "tool_call_id": second, "content": "inside"}
    assert messages[3]["tool_call_id"] == first


def test_the_anthropic_wire_keeps_results_and_words_in_one_turn() -> None:
    messages = anthropic(parallel())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert [block["type"] for block in messages[2]["content"]] == ["tool_result", "tool_result", "text"]
    assert messages[2]["content"][1] == {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Exit code 3", "is_error": True}


def test_a_call_without_a_result_gets_one_that_says_so() -> None:
    messages = ollama(request(user("go"), calls(("toolu_1", "Bash", {})), user("stop that")))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "user"]
    assert "interrupted" in messages[2]["content"]


def test_a_result_whose_call_was_compacted_away_is_said_by_the_user() -> None:
    messages = ollama(request(user(result("toolu_9", "42 files")), {"role": "assistant", "content": "ok"}, user("and?")))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert "42 files" in messages[0]["content"]


def test_images_in_results_are_shown_beside_them_to_models_that_see() -> None:
    body = request(user("look"), calls(("toolu_1", "Read", {})), user(result("toolu_1", [IMAGE])))
    messages = ollama(body, SEEING)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "user"]
    assert messages[3]["images"] == [PIXEL]
    assert openai(body, SEEING)["messages"][3]["content"][1]["image_url"]["url"] == f"data:image/png;base64,{PIXEL}"
    assert anthropic(body, SEEING)["messages"][2]["content"][2] == IMAGE


def test_models_that_do_not_see_are_told_that_there_was_an_image() -> None:
    body = request(user("look", IMAGE, {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}))
    content = ollama(body)["messages"][0]["content"]
    assert PIXEL not in content
    assert "You cannot see images" in content
    assert "https://example.com/a.png" in content


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"type": "text", "media_type": "text/plain", "data": "the words"}, "the words"),
        ({"type": "base64", "media_type": "text/plain", "data": "dGhlIHdvcmRz"}, "the words"),
        ({"type": "content", "content": [{"type": "text", "text": "the words"}]}, "the words"),
        ({"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="}, "application/pdf"),
        ({"type": "url", "url": "https://example.com/a.pdf"}, "https://example.com/a.pdf"),
        ({"type": "base64", "media_type": "text/plain", "data": "@@@"}, "document"),
    ],
)
def test_documents_become_text_or_a_note(source: dict[str, Any], expected: str) -> None:
    content = ollama(request(user({"type": "document", "title": "The title", "source": source})))["messages"][0]["content"]
    assert expected in content
    assert "The title" in content


def test_deferred_tools_are_hidden_until_a_search_has_named_them() -> None:
    def tool(name: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "description": "", "input_schema": {"type": "object", "properties": {}}, **more}

    tools = [tool("ToolSearch"), tool("WebFetch", defer_loading=True), tool("DeferredToolPlaceholder", defer_loading=True)]
    before = ollama(request(user("hi"), tools=tools))
    assert [item["function"]["name"] for item in before["tools"]] == ["ToolSearch"]
    found = user(result("toolu_1", [{"type": "tool_reference", "tool_name": "WebFetch"}]))
    after = ollama(request(user("hi"), calls(("toolu_1", "ToolSearch", {})), found, tools=tools))
    assert [item["function"]["name"] for item in after["tools"]] == ["ToolSearch", "WebFetch"]
    assert "WebFetch is loaded" in after["messages"][2]["content"]
    assert [item["function"]["name"] for item in ollama(request(user("hi"), tools=tools[1:]))["tools"]] == ["WebFetch"]


def test_tool_choice_is_said_on_the_wire_where_there_is_a_word_for_it_and_in_words_elsewhere() -> None:
    def chosen(**choice: Any) -> dict[str, Any]:
        return request(user("hi"), tools=[BASH, {**BASH, "name": "Read"}], tool_choice=choice)

    assert openai(chosen(type="any"))["tool_choice"] == "required"
    assert openai(chosen(type="tool", name="Read"))["tool_choice"] == {"type": "function", "function": {"name": "Read"}}
    assert openai(chosen(type="auto", disable_parallel_tool_use=True))["parallel_tool_calls"] is False
    assert anthropic(chosen(type="tool", name="Read"))["tool_choice"] == {"type": "tool", "name": "Read"}
    assert "You must answer with a call" in ollama(chosen(type="any"))["messages"][-1]["content"]
    only = ollama(chosen(type="tool", name="Read"))
    assert [tool["function"]["name"] for tool in only["tools"]] == ["Read"]
    assert "at most one tool" in ollama(chosen(type="auto", disable_parallel_tool_use=True))["messages"][-1]["content"]
    assert "tools" not in ollama(chosen(type="none"))
    assert ollama(chosen(type="auto"))["messages"][-1]["content"] == "hi"


def test_tools_that_only_anthropic_runs_are_named_as_absent() -> None:
    written = ollama(request(user("hi"), tools=[BASH, {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}]))
    assert [tool["function"]["name"] for tool in written["tools"]] == ["Bash"]
    assert "web_search" in written["messages"][0]["content"]


def test_what_anthropics_search_once_found_is_told_without_what_only_anthropic_reads() -> None:
    found = {"type": "web_search_result", "title": "Rain", "url": "https://example.com/rain", "encrypted_content": "EqgfCioI"}
    answer = {
        "role": "assistant",
        "content": [
            {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "weather"}},
            {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [found]},
            {"type": "text", "text": "It rains."},
        ],
    }
    content = ollama(request(user("hi"), answer, user("and?")))["messages"][1]["content"]
    assert "EqgfCioI" not in content
    for word in ("weather", "Rain", "https://example.com/rain", "It rains."):
        assert word in content


def test_an_answer_in_a_given_shape_is_asked_for_in_each_servers_way() -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    body = request(user("hi"), output_config={"format": {"type": "json_schema", "schema": schema}})
    assert ollama(body)["format"] == schema
    assert openai(body)["response_format"]["json_schema"]["schema"] == schema


def test_schemas_lose_what_local_servers_trip_over_and_keep_their_meaning() -> None:
    schema = {
        "type": "object",
        "$defs": {"Size": {"type": "integer", "description": "how large"}, "Node": {"properties": {"next": {"$ref": "#/$defs/Node"}}}},
        "properties": {
            "any": True,
            "size": {"$ref": "#/$defs/Size"},
            "kind": {"const": "a"},
            "one": {"oneOf": [{"type": "string"}, {"type": "null"}]},
            "all": {"allOf": [{"type": "object", "properties": {"x": {}}}, {"properties": {"y": {}}}]},
            "node": {"$ref": "#/$defs/Node"},
            "list": {"type": "array", "items": True},
            "old": {"type": "string", "required": True, "enum": "a"},
        },
    }
    cleaned = plain(schema)
    text = orjson.dumps(cleaned).decode()
    assert "$" not in text
    assert cleaned["properties"]["any"] == {}
    assert cleaned["properties"]["size"] == {"type": "integer", "description": "how large"}
    assert cleaned["properties"]["kind"] == {"enum": ["a"]}
    assert cleaned["properties"]["one"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert set(cleaned["properties"]["all"]["properties"]) == {"x", "y"}
    assert cleaned["properties"]["old"] == {"type": "string"}
    assert plain(None) == {"type": "object", "properties": {}, "required": []}


def test_a_model_without_tools_is_offered_them_in_words() -> None:
    plain_target = Target("phi", tools=False)
    spoken = in_words(read(parallel(), plain_target))
    written = to_ollama.written(spoken, plain_target)
    assert "tools" not in written
    assert '"name": "Bash"' in written["messages"][0]["content"]
    assert [message["role"] for message in written["messages"]] == ["system", "user", "assistant", "user"]
    assert '<tool_call>\n{"name": "Bash", "arguments": {"command": "ls"}}' in written["messages"][2]["content"]
    assert "Error: Exit code 3" in written["messages"][3]["content"]


def test_a_request_without_messages_is_refused() -> None:
    with pytest.raises(Refused):
        read({"model": "m", "messages": "hi"}, TARGET)


words = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=30).map(lambda text: f"⟦{text}⟧")
texts = st.builds(lambda text: {"type": "text", "text": text}, words)
results = st.builds(
    lambda key, content, wrong: {"type": "tool_result", "tool_use_id": key, "content": content, "is_error": wrong},
    st.sampled_from(["t1", "t2", "t3"]),
    words | st.lists(texts, max_size=2),
    st.booleans(),
)
uses = st.builds(
    lambda key, given: {"type": "tool_use", "id": key, "name": "Bash", "input": {"command": given}}, st.sampled_from(["t1", "t2"]), words
)
documents = st.builds(lambda text: {"type": "document", "source": {"type": "text", "data": text}}, words)
unknown = st.builds(lambda text: {"type": "new_kind", "payload": text}, words)
messages = st.one_of(
    st.builds(
        lambda content: {"role": "user", "content": content},
        words | st.lists(texts | results | documents | unknown, min_size=1, max_size=4),
    ),
    st.builds(lambda content: {"role": "assistant", "content": content}, words | st.lists(texts | uses, min_size=1, max_size=3)),
    st.builds(lambda content: {"role": "system", "content": content}, words),
)


def said_in(value: object) -> list[str]:
    """Return every marked word in what a model would read, as it would read it."""
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [word for item in items for word in said_in(item)]


@given(st.lists(messages, min_size=1, max_size=8), words)
def test_no_conversation_loses_a_word(spoken: list[dict[str, Any]], system: str) -> None:
    body = request(*spoken, system=system)
    wanted = [word for word in said_in([system, spoken]) if word.startswith("⟦")]
    conversation = read(body, TARGET)
    for written in (
        to_ollama.written(conversation, TARGET)["messages"],
        to_openai.written(conversation, TARGET, 0)["messages"],
        [to_anthropic.written(conversation, TARGET, 0)],
        to_ollama.written(in_words(conversation), TARGET)["messages"],
    ):
        # Arguments and unknown blocks stand there as JSON, so a word counts in either spelling.
        everything = "\n".join(said_in(written))
        for word in wanted:
            quoted = orjson.dumps(word).decode()[1:-1]
            assert word in everything or quoted in everything


@given(st.lists(messages, min_size=1, max_size=8))
def test_every_conversation_comes_out_in_an_order_strict_servers_take(spoken: list[dict[str, Any]]) -> None:
    conversation: Conversation = read(request(*spoken), TARGET)
    before, due = "", 0
    for place, line in enumerate(conversation.lines):
        assert line.role != "system" or place == 0
        assert line.role != "tool" or due > 0
        assert line.role == "tool" or due == 0
        assert line.role == "tool" or line.role != before
        due = len({call.id for call in line.calls}) if line.role == "assistant" else due - (line.role == "tool")
        before = line.role
    assert due == 0
