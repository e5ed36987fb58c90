"""A plan that passes can always be run to its end; one that does not is refused in one clear line."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudecluster.graph.check import cycle, problems, verify
from claudecluster.model.errors import Refused
from claudecluster.model.task import Gate, Plan, Task


def task(name: str, *needs: str, **rest: object) -> Task:
    return Task(name, prompt="Do it", needs=needs, **rest)


def plan(*tasks: Task, **rest: object) -> Plan:
    return Plan(tasks, **rest)


GATE = Gate("tests", "pytest")
SOUND = plan(task("a"), task("b", "a"), Task("c", run="true", agent="command", needs=("a", "b")), gates=(GATE,))

WRONG = {
    "no tasks": (plan(), "no tasks", "at least one"),
    "two ids": (plan(task("a"), task("b"), task("a"), task("a")), "two tasks have the id 'a'", "rename"),
    "upper case": (plan(task("Fix")), "task 1 has a bad id: 'Fix'", "a-z, 0-9 and -"),
    "empty id": (plan(task("a"), task("")), "task 2 has a bad id: ''", "1 to 64"),
    "long id": (plan(task("a" * 65)), "bad id", "64"),
    "a newline": (plan(task("a\n")), "bad id: 'a\\n'", "a-z"),
    "a path": (plan(task("../x")), "bad id", "a-z"),
    "unknown need": (
        plan(task("fix-gcd"), task("b", "fix-gdc")),
        "task 'b' needs 'fix-gdc', which is not a task",
        "did you mean 'fix-gcd'?",
    ),
    "far need": (plan(task("a", "zzzzzz")), "needs 'zzzzzz'", "add that task"),
    "itself": (plan(task("a", "a")), "task 'a' needs itself", "remove"),
    "two in a circle": (plan(task("a", "b"), task("b", "a")), "in a circle: a -> b -> a", "remove one"),
    "three in a circle": (
        plan(task("x"), task("c", "x", "b"), task("a", "c"), task("b", "a"), task("y", "b")),
        "in a circle: c -> b -> a -> c",
        "remove one",
    ),
    "no prompt": (plan(Task("a")), "task 'a' has no prompt for agent 'claude-code'", "prompt:"),
    "blank prompt": (plan(Task("a", prompt=" \n")), "no prompt", "prompt:"),
    "run without its agent": (plan(Task("a", run="make")), "no prompt for agent 'claude-code'", "`agent: command`"),
    "no command": (plan(Task("a", prompt="x", agent="command")), "agent 'command' but no command", "run:"),
    "two gates of a plan": (plan(task("a"), gates=(GATE, GATE)), "the plan has 2 gates named 'tests'", "unique"),
    "two gates of a task": (plan(task("a", gates=(GATE, GATE))), "task 'a' has 2 gates named 'tests'", "unique"),
    "gate without command": (plan(task("a", gates=(Gate("g", " "),))), "gate 'g' of task 'a' has no command", "run:"),
    "gate without name": (plan(task("a"), gates=(Gate("", "true"),)), "the plan has a gate without a name", "name:"),
    "gate without time": (plan(task("a"), gates=(Gate("g", "true", 0),)), "timeout of 0 s", "more than 0"),
    "no attempts": (plan(task("a", max_attempts=0)), "may make 0 attempts", "1 or more"),
    "no time": (plan(task("a", timeout=-1.0)), "timeout of -1 s", "more than 0"),
    "not a time": (plan(task("a", timeout=float("nan"))), "timeout of nan s", "more than 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_in_one_line_with_a_hint(name: str) -> None:
    wrong, message, hint = WRONG[name]
    with pytest.raises(Refused) as refused:
        verify(wrong)
    assert message in refused.value.message
    assert "\n" not in refused.value.message
    assert hint in refused.value.hint


def test_a_sound_plan_passes() -> None:
    verify(SOUND)
    assert list(problems(SOUND)) == []


def test_a_gate_of_a_task_may_replace_the_plans() -> None:
    verify(replace(SOUND, tasks=(task("a", gates=(GATE,)),)))


def test_everything_wrong_is_found_at_once() -> None:
    messages = [problem.message for problem in problems(plan(task("a", "a", "x"), Task("B"), task("a")))]
    assert len(messages) == 5


def test_a_need_named_twice_is_one_need() -> None:
    verify(plan(task("a"), task("b", "a", "a")))


def test_a_long_chain_and_a_long_circle_are_no_deeper_than_a_short_one() -> None:
    chain = [task("t0"), *(task(f"t{number}", f"t{number - 1}") for number in range(1, 10_000))]
    verify(plan(*chain))
    circle = cycle(plan(task("t0", "t9999"), *chain[1:]))
    assert len(circle) == 10_001
    assert circle[0] == circle[-1] == "t0"


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    size = draw(st.integers(1, 7))
    names = [f"t{number}" for number in range(size)]
    needs = st.lists(st.sampled_from(names), max_size=3)
    return plan(*(task(name, *(need for need in draw(needs) if need != name)) for name in names))


@given(plans())
def test_a_circle_is_named_exactly_where_no_order_exists(given_plan: Plan) -> None:
    needs = {entry.id: set(entry.needs) for entry in given_plan.tasks}
    orders = itertools.permutations(needs)  # the oracle: try every order there is
    possible = any(all(needs[name] <= set(order[:place]) for place, name in enumerate(order)) for order in orders)
    circle = cycle(given_plan)
    assert bool(circle) is not possible
    if circle:
        assert circle[0] == circle[-1]
        assert len(set(circle)) == len(circle) - 1 >= 2
        assert all(second in needs[first] for first, second in itertools.pairwise(circle))
