"""What Claude Code says, and what it means: the result's `is_error` and status decide, never its subtype."""

from typing import Any

import pytest
from claude_agent_sdk import (
    AssistantMessage,
    RateLimitEvent,
    RateLimitInfo,
    ResultMessage,
    SystemMessage,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

from claudecluster.agents.claude_ear import Ear
from claudecluster.model.errors import Unavailable
from claudecluster.model.evidence import Outcome
from claudecluster.ports.agent import Heard


class Ears(Ear):
    """An ear that remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        super().__init__(self.heard.append, work="/w", session="s1")


def result(
    text: str = "", *, error: bool = True, status: int | None = None, subtype: str = "success", errors: list[str] | None = None
) -> ResultMessage:
    return ResultMessage(subtype, 5, 3, error, 2, "s1", result=text, api_error_status=status, errors=errors)


def said(text: str, error: Any = None, *, model: str = "claude-opus-5-5") -> AssistantMessage:
    return AssistantMessage([TextBlock(text)], "<synthetic>" if error else model, error=error)


def system(subtype: str, **data: Any) -> SystemMessage:
    return SystemMessage(subtype, {"type": "system", "subtype": subtype, **data})


@pytest.mark.parametrize("status", [429, 500, 503, 529, 408])
def test_passing_statuses_are_unavailable_though_the_subtype_says_success(status: int) -> None:
    ear = Ears()
    ear.listen(result("API Error", status=status))
    with pytest.raises(Unavailable, match="cannot be reached"):
        ear.report(0)


@pytest.mark.parametrize("error", ["server_error", "rate_limit", "unknown"])
def test_a_connection_that_failed_without_any_status_is_unavailable(error: str) -> None:
    ear = Ears()
    ear.listen(said("API Error: Connection refused", error))
    ear.listen(result("API Error: Connection refused"))
    with pytest.raises(Unavailable, match="refused"):
        ear.report(0)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (result("API Error: 400", status=400), "API Error: 400"),
        (result("no such model", status=404), "no such model"),
        (result(subtype="error_max_turns", errors=["Reached maximum number of turns (2)"]), "maximum number of turns"),
        (result(subtype="error_max_budget_usd", errors=["Reached maximum budget ($0.01)"]), "maximum budget"),
        (result(subtype="error_during_execution"), "error_during_execution"),
    ],
)
def test_everything_else_is_the_agents_failure(message: ResultMessage, why: str) -> None:
    ear = Ears()
    ear.listen(said("I try."))
    ear.listen(message)
    report = ear.report(0)
    assert report.outcome is Outcome.FAILED
    assert why in report.error
    assert (report.session, report.model, report.turns) == ("s1", "claude-opus-5-5", 2)


def test_an_error_that_was_overcome_does_not_count_at_the_end() -> None:
    ear = Ears()
    ear.listen(said("API Error", "server_error"))
    ear.listen(said("On we go."))
    ear.listen(result(subtype="error_during_execution"))
    assert ear.report(0).outcome is Outcome.FAILED


def test_a_limit_that_names_its_end_says_how_long_to_wait() -> None:
    ear = Ears()
    info = RateLimitInfo("rejected", resets_at=1500, rate_limit_type="five_hour", raw={"status": "rejected"})
    ear.listen(RateLimitEvent(info, "u", "s1"))
    ear.listen(result("You've hit your session limit", status=429))
    with pytest.raises(Unavailable) as caught:
        ear.report(1000)
    assert caught.value.delay == 500


def test_no_result_at_all_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        Ears().report(0)


def test_refused_credentials_are_counted_until_an_answer_comes() -> None:
    ear = Ears()
    for _ in range(2):
        ear.listen(system("api_retry", error_status=401, retry_delay_ms=500))
    assert ear.refused == 2
    ear.listen(said("At last."))
    assert ear.refused == 0


def test_what_it_does_is_told_in_short_lines() -> None:
    ear = Ears()
    calls = [
        ToolUseBlock("1", "Edit", {"file_path": "/w/src/x.py", "old_string": "a", "new_string": "b"}),
        ToolUseBlock("2", "Read", {"file_path": "/etc/hosts"}),
        ToolUseBlock("3", "Bash", {"command": "make\nmake test", "description": "build"}),
        ToolUseBlock("4", "Nothing", {}),
    ]
    ear.listen(AssistantMessage([TextBlock(" I work. "), *calls], "claude-opus-5-5"))
    ear.listen(UserMessage([ToolResultBlock("3", [{"type": "text", "text": "ok"}, {"type": "image"}], is_error=False)]))
    ear.listen(system("model_fallback", trigger="overloaded", original_model="a", fallback_model="b"))
    ear.listen(system("a_subtype_of_tomorrow"))
    assert [(one.kind, one.text) for one in ear.heard] == [
        ("text", "I work."),
        ("tool", "Edit src/x.py"),
        ("tool", "Read /etc/hosts"),
        ("tool", "Bash make …"),
        ("tool", "Nothing"),
        ("output", "ok\n[image]"),
        ("notice", "model a is out (overloaded); b goes on"),
    ]


def test_endless_output_is_cut_with_its_length() -> None:
    ear = Ears()
    ear.listen(UserMessage([ToolResultBlock("1", "x" * 10_000)]))
    assert len(ear.heard[0].text) < 2100
    assert "10000 characters" in ear.heard[0].text


def test_patience_is_short_after_a_result_unless_something_goes_on() -> None:
    ear = Ears()
    assert ear.patience(900) == 900
    ear.listen(result(error=False))
    assert ear.patience(900) == 5
    ear.listen(system("background_tasks_changed", tasks=[{"task_type": "local_bash"}]))
    assert ear.patience(900) == 900, "a turn is under way"
    ear.listen(result(error=False))
    assert ear.patience(900) == 60
    ear.listen(system("background_tasks_changed", tasks=[{"task_type": "local_bash"}, {"task_type": "local_agent"}]))
    ear.listen(result(error=False))
    assert ear.patience(900) == 900
