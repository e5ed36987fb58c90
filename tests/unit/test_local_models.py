"""Which local model answers, and why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudecluster.gateway.local.models import DEFAULT, Facts, Row, choose, facts_from, facts_of, named, table_from
from claudecluster.model.errors import Refused

TABLE = table_from(
    [
        {"model": "general:30b"},
        {"model": "small:8b", "complexity": "low"},
        {"model": "small:8b", "wanted": "haiku"},
        {"model": "writer:8b", "category": ["document"]},
        {"model": "rust:14b", "language": "rust"},
        {"model": "hard-rust:70b", "language": "rust", "complexity": ["high"]},
    ]
)
ALL = ("general:30b", "small:8b", "writer:8b", "rust:14b", "hard-rust:70b")


@pytest.mark.parametrize(
    ("facts", "model", "why"),
    [
        (Facts(), "general:30b", "the default row"),
        (Facts(wanted="claude-haiku-5-5"), "small:8b", "asked for claude-haiku-5-5"),
        (Facts(complexity="low"), "small:8b", "low complexity"),
        (Facts(category="document", complexity="high"), "writer:8b", "document"),
        (Facts(category="document", complexity="low"), "small:8b", "low complexity"),
        (Facts(language="rust", complexity="medium"), "rust:14b", "rust"),
        (Facts(language="rust", complexity="high"), "hard-rust:70b", "rust, high complexity"),
    ],
)
def test_the_most_particular_row_wins_and_says_why(facts: Facts, model: str, why: str) -> None:
    choice = choose(facts, TABLE, ALL)
    assert choice.model == model
    assert choice.why == f"{model}: {why}"
    assert choice.degraded


def test_a_model_asked_for_by_its_own_name_is_no_degradation() -> None:
    choice = choose(Facts(wanted="rust:14b"), TABLE, ALL)
    assert (choice.model, choice.degraded) == ("rust:14b", False)


def test_rows_whose_model_is_not_installed_are_passed_over_and_named() -> None:
    choice = choose(Facts(language="rust", complexity="high"), TABLE, ("general:30b", "rust:14b"))
    assert choice.model == "rust:14b"
    assert "hard-rust:70b not installed" in choice.why


def test_a_configured_model_comes_before_the_table_and_after_the_clients_own_wish() -> None:
    facts = Facts(wanted="claude-opus-5-5", language="rust")
    assert choose(facts, TABLE, ALL, "writer").why == "writer:8b: set in the configuration"
    assert choose(Facts(wanted="small:8b"), TABLE, ALL, "writer:8b").model == "small:8b"
    absent = choose(facts, TABLE, ALL, "absent:1b")
    assert absent.why == "rust:14b: rust (absent:1b not installed)"


def test_any_installed_model_is_better_than_none() -> None:
    assert choose(Facts(), DEFAULT, ("odd:1b",)).model == "odd:1b"


def test_no_model_at_all_is_refused_with_what_to_install() -> None:
    with pytest.raises(Refused) as refused:
        choose(Facts(), DEFAULT, ())
    assert "ollama pull qwen3-coder:30b" in refused.value.hint


def test_names_without_a_tag_mean_latest_or_the_only_tag() -> None:
    assert named("a", ("a:1b", "a:latest")) == "a:latest"
    assert named("a", ("a:1b", "b:1b")) == "a:1b"
    assert named("a", ("a:1b", "a:2b")) == ""
    assert named("a:3b", ("a:1b",)) == ""


@pytest.mark.parametrize(
    "row",
    [{}, {"model": 3}, {"model": "m", "complexity": "extreme"}, {"model": "m", "colour": "red"}],
)
def test_a_row_that_cannot_be_read_is_refused_by_its_number(row: dict[str, object]) -> None:
    with pytest.raises(Refused, match="row 2"):
        table_from([{"model": "a"}, row])


def test_facts_come_from_the_words_and_files_of_a_task() -> None:
    easy = facts_of("Fix the typo in the README", ["README.md"], category="document")
    assert (easy.complexity, easy.language) == ("low", "markdown")
    hard = facts_of("Refactor the scheduler to remove the race condition and the deadlock", ["a.py", "b.py", "c.sql"])
    assert (hard.complexity, hard.language) == ("high", "python")
    assert facts_of("Write a rust function").language == "rust"


names = st.sampled_from(ALL)


@given(
    st.lists(st.builds(Row, names, complexities=st.sampled_from([(), ("low",)]), languages=st.sampled_from([(), ("rust",)])), max_size=5),
    st.lists(names, min_size=1, unique=True),
    st.builds(Facts, complexity=st.sampled_from(["", "low", "high"]), language=st.sampled_from(["", "rust"])),
)
def test_the_choice_is_always_an_installed_model(rows: list[Row], available: list[str], facts: Facts) -> None:
    choice = choose(facts, rows, available)
    assert choice.model in available
    assert choice.why.startswith(choice.model)


def test_a_request_says_what_its_table_row_asks_for_by_its_first_prompt_and_the_tasks_files() -> None:
    reminder = "<system-reminder>Refactor the architecture in typescript.</system-reminder>"
    first = {"role": "user", "content": [{"type": "text", "text": reminder}, {"type": "text", "text": "Fix a typo."}]}
    later = {"role": "user", "content": "Now redesign the concurrency, security and performance."}
    found = facts_from({"messages": [first, later]}, ("src/*.rs",), category="code", wanted="claude-x")
    assert found == Facts("claude-x", "code", "low", "rust")
    assert facts_from({}) == facts_of("")
