"""Scenario files are checked when read, and a conversation alone decides which turn is next."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudecluster.model.errors import NotFound, Refused
from claudecluster.testing import conversation
from claudecluster.testing.scenario import Fault, Scenario, Session, Tool, Turn, due, load, parse

STEPS = Scenario(
    sessions=(
        Session(
            match="the work",
            closing="Closed.",
            turns=(
                Turn(text="Looking.", tools=(Tool(name="Read", input={"file_path": "{cwd}/a"}),)),
                Turn(tools=(Tool(name="Edit", input={"file_path": "{cwd}/a"}), Tool(name="Bash", input={"command": "x"}))),
                Turn(text="Done."),
                Turn(when="failed", text="Again."),
                Turn(text="Really done."),
            ),
        ),
    )
)
ENVIRONMENT = {"role": "system", "content": "# Environment\n - Primary working directory: /w\n - Is a git repository: true"}


def body(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 9, "tools": [{"name": "Read"}], "messages": [user("do the work"), ENVIRONMENT, *messages]}


def user(text: str) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "text", "text": "<system-reminder>failed</system-reminder>"}, {"type": "text", "text": text}],
    }


def said(answer: conversation.Answer) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = [{"type": "text", "text": answer.turn.text}] if answer.turn.text else []
    for index, tool in enumerate(answer.turn.tools):
        blocks.append({"type": "tool_use", "id": answer.place.tool_id("salt", index), "name": tool.name, "input": tool.input})
    return {"role": "assistant", "content": blocks}


def results(answer: conversation.Answer, text: str = "ok", *, error: bool = False) -> dict[str, Any]:
    ids = [answer.place.tool_id("salt", index) for index in range(len(answer.turn.tools))]
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": one, "content": text, "is_error": error} for one in ids]}


def play(turns: int) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for _ in range(turns):
        answer = conversation.answer(STEPS, body(*messages))
        messages.append(said(answer))
        if answer.turn.tools:
            messages.append(results(answer))
    return messages


def next_turn(*messages: dict[str, Any]) -> conversation.Answer:
    return conversation.answer(STEPS, body(*messages))


def test_turns_follow_one_another() -> None:
    assert [next_turn(*play(count)).place.turn for count in range(3)] == [0, 1, 2]


def test_the_working_directory_is_filled_in() -> None:
    assert next_turn().turn.tools[0].input == {"file_path": "/w/a"}


def test_feedback_opens_the_turns_that_wait_for_it() -> None:
    assert next_turn(*play(3), user("the gate failed")).turn.text == "Again."


def test_anything_else_said_after_the_end_is_answered_by_the_closing() -> None:
    answer = next_turn(*play(3), user("do the work"))
    assert (answer.turn.text, answer.final) == ("Closed.", True)
    later = next_turn(*play(3), user("do the work"), said(answer), user("it failed"))
    assert later.turn.text == "Again."


def test_a_prompt_sent_again_after_a_kill_changes_nothing() -> None:
    again = next_turn(*play(2), {"role": "assistant", "content": "No response requested."}, user("do the work"))
    assert again.place.turn == 2


def test_a_tool_that_was_killed_is_called_again_under_another_id() -> None:
    first = next_turn(*play(1))
    again = next_turn(*play(1), said(first), results(first, "[Tool call interrupted: the session ended]", error=True), user("do the work"))
    assert (again.place.turn, again.place.attempt) == (1, 1)
    assert again.place.tool_id("salt", 0) != first.place.tool_id("salt", 0)
    assert next_turn(*play(1), said(first), results(first, "killed", error=True)).place.turn == 2, "other errors are results"


def test_a_file_that_must_be_read_first_is_read_and_the_turn_repeated() -> None:
    first = next_turn(*play(1))
    refused = [*play(1), said(first), results(first, "File has not been read yet. Read it first.", error=True)]
    reading = next_turn(*refused)
    assert [tool.name for tool in reading.turn.tools] == ["Read"]
    assert reading.turn.tools[0].input == {"file_path": "/w/a"}
    repeated = next_turn(*refused, said(reading), results(reading))
    assert (repeated.place.turn, repeated.place.attempt) == (1, 1)


def test_a_compacted_conversation_keeps_its_place() -> None:
    summary = next_turn(*play(2), user("Your task is to create a detailed summary of the conversation so far."))
    assert "(scripted turn 2)" in summary.turn.text
    assert next_turn(user(f"The session so far: {summary.turn.text}")).place.turn == 2


def test_side_requests_get_sane_answers() -> None:
    title = {"model": "m", "max_tokens": 100, "system": "Write a short title for this session", "messages": [user("do the work")]}
    assert conversation.answer(STEPS, title).turn.text.startswith("{")
    assert conversation.answer(STEPS, {"model": "m", "max_tokens": 1, "messages": [user("quota")]}).turn.text == "ok"


def test_what_nothing_matches_is_said_otherwise() -> None:
    assert conversation.answer(STEPS, {"messages": [user("sing")], "tools": [{}]}).turn.text == STEPS.otherwise


def test_a_tool_call_without_its_result_would_be_refused() -> None:
    first = next_turn()
    assert "without `tool_result`" in conversation.pairing_error(body(said(first), user("well?"))["messages"])
    assert conversation.pairing_error(body(said(first), ENVIRONMENT, results(first))["messages"]) == ""


@given(st.lists(st.integers(1, 3), max_size=4), st.integers(0, 12))
def test_every_fault_strikes_as_often_as_it_says(times: list[int], struck: int) -> None:
    faults = [Fault(status=500 + index, times=count) for index, count in enumerate(times)]
    flat = [fault for fault in faults for _ in range(fault.times)]
    assert due(faults, struck) == (flat[struck] if struck < len(flat) else None)


@pytest.mark.parametrize(
    ("text", "said_about_it"),
    [
        ("sessions: [{match: x, turns: [{txt: y}]}]", "sessions.0.turns.0.txt"),
        ("sessions: [{match: '(', turns: []}]", "not a regular expression"),
        ("sessions: [{match: x, turns: [{faults: [{status: 500, cut: before}]}]}]", "exactly one"),
        ("sessions: [", "neither YAML nor JSON"),
        ("- a list", "scenario"),
        ('{"pace": {"first": -1}}', "pace.first"),
    ],
)
def test_mistakes_are_named_by_their_place(text: str, said_about_it: str) -> None:
    with pytest.raises(Refused, match=r"scenario") as caught:
        parse(text)
    assert said_about_it in str(caught.value)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.yaml"):
        load(tmp_path / "none.yaml")


def test_the_examples_scenario_knows_every_task_of_the_example() -> None:
    example = Path(__file__).parents[2] / "examples" / "01-almanac"
    scenario = load(example / "scenario.yaml")
    tasks = (example / "tasks.yaml").read_text().split("\n  - id: ")[1:]
    assert len(tasks) == len(scenario.sessions) == 8
    assert sorted(scenario.session(task)[0] for task in tasks) == list(range(8))
