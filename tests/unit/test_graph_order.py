"""What runs when: against oracles that try every way there is."""

import itertools
import time
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from claudecluster.graph.check import verify
from claudecluster.graph.order import blocked, critical_path, priority, ready, remaining, topological
from claudecluster.model.run import TaskState
from claudecluster.model.task import Plan, Priority, Task

RANK = [Priority.CRITICAL, Priority.HIGH, Priority.MEDIUM, Priority.LOW]


def task(name: str, *needs: str, urgency: Priority = Priority.MEDIUM) -> Task:
    return Task(name, prompt="Do it", needs=needs, priority=urgency)


def plan(*tasks: Task) -> Plan:
    return Plan(tasks)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    size = draw(st.integers(1, 8))
    tasks = []
    for number in range(size):
        needs = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        tasks.append(task(f"t{number}", *(f"t{need}" for need in sorted(needs)), urgency=draw(st.sampled_from(RANK))))
    return Plan(tuple(draw(st.permutations(tasks))))


def chains(given_plan: Plan, name: str) -> Iterator[list[str]]:
    """Yield every way from a task to an end."""
    after = [entry.id for entry in given_plan.tasks if name in entry.needs]
    if not after:
        yield [name]
    for dependent in after:
        for rest in chains(given_plan, dependent):
            yield [name, *rest]


def ancestors(given_plan: Plan, name: str) -> set[str]:
    needs = {entry.id: entry.needs for entry in given_plan.tasks}
    found: set[str] = set()
    todo = [name]
    while todo:
        for need in needs[todo.pop()]:
            if need not in found:
                found.add(need)
                todo.append(need)
    return found


@given(plans())
def test_needs_come_first_and_file_order_decides_the_rest(given_plan: Plan) -> None:
    order = topological(given_plan)
    assert sorted(order) == sorted(entry.id for entry in given_plan.tasks)
    place = {entry.id: number for number, entry in enumerate(given_plan.tasks)}
    needs = {entry.id: set(entry.needs) for entry in given_plan.tasks}
    for number, name in enumerate(order):
        free = [other for other in order[number:] if needs[other] <= set(order[:number])]
        assert name == min(free, key=place.__getitem__)


def test_a_circle_is_left_out_of_the_order() -> None:
    assert topological(plan(task("a", "b"), task("b", "a"), task("c"), task("d", "a"))) == ["c"]


@given(plans(), st.data())
def test_ready_and_blocked_are_what_the_states_say(given_plan: Plan, data: st.DataObject) -> None:
    states = {entry.id: data.draw(st.sampled_from(list(TaskState))) for entry in given_plan.tasks}
    pending = [entry for entry in given_plan.tasks if states[entry.id] is TaskState.PENDING]
    assert ready(given_plan, states) == [entry.id for entry in pending if all(states[need] is TaskState.DONE for need in entry.needs)]
    bad = {name for name, state in states.items() if state.over and state is not TaskState.DONE}
    found = blocked(given_plan, states)
    assert not set(found) & set(ready(given_plan, states))
    for entry in pending:
        # The oracle: a failure behind it with nothing but pending tasks between.
        causes = {start for start in bad if any(between_is_pending(chain, entry.id, states) for chain in chains(given_plan, start))}
        assert (entry.id in found) is bool(causes)
        if causes:
            assert found[entry.id] in causes
    assert set(found) <= {entry.id for entry in pending}


def between_is_pending(chain: list[str], name: str, states: dict[str, TaskState]) -> bool:
    return name in chain and all(states[step] is TaskState.PENDING for step in chain[1 : chain.index(name) + 1])


def test_a_failure_blocks_all_that_wait_for_it_and_names_itself() -> None:
    diamond = plan(task("a"), task("b", "a"), task("c", "b"), task("d", "c", "x"), task("x"))
    assert blocked(diamond, {"a": TaskState.REJECTED}) == {"b": "a", "c": "a", "d": "a"}
    assert blocked(diamond, {"a": TaskState.DONE, "b": TaskState.RUNNING}) == {}
    assert blocked(diamond, {}) == {}


def test_what_was_blocked_before_still_blocks() -> None:
    chain = plan(task("a"), task("b", "a"), task("c", "b"))
    assert blocked(chain, {"a": TaskState.FAILED, "b": TaskState.BLOCKED}) == {"c": "b"}


@given(plans(), st.data())
def test_the_critical_path_is_the_heaviest_chain_there_is(given_plan: Plan, data: st.DataObject) -> None:
    weights = {entry.id: float(data.draw(st.integers(0, 5))) for entry in given_plan.tasks if data.draw(st.booleans())}

    def weight(chain: list[str]) -> float:
        return sum(weights.get(name, 1.0) for name in chain)

    best = {entry.id: max(weight(chain) for chain in chains(given_plan, entry.id)) for entry in given_plan.tasks}
    assert remaining(given_plan, weights) == best
    path = critical_path(given_plan, weights)
    assert weight(path) == max(best.values())
    needs = {entry.id: entry.needs for entry in given_plan.tasks}
    assert all(first in needs[second] for first, second in itertools.pairwise(path))


@given(plans())
def test_the_queue_puts_urgent_then_long_then_early_first(given_plan: Plan) -> None:
    queue = priority(given_plan)
    assert sorted(queue.values()) == list(range(1, len(given_plan.tasks) + 1))
    own = {entry.id: RANK.index(entry.priority) for entry in given_plan.tasks}
    waits = {name: [other.id for other in given_plan.tasks if name in ancestors(given_plan, other.id)] for name in own}
    longest = {name: max(len(chain) for chain in chains(given_plan, name)) for name in own}
    place = {entry.id: number for number, entry in enumerate(given_plan.tasks)}
    key = {name: (min(own[other] for other in [name, *waits[name]]), -longest[name], place[name]) for name in own}
    assert sorted(queue, key=queue.__getitem__) == sorted(own, key=key.__getitem__)


def test_what_a_critical_task_waits_for_is_critical_too() -> None:
    queue = priority(
        plan(task("high", urgency=Priority.HIGH), task("low", urgency=Priority.LOW), task("top", "low", urgency=Priority.CRITICAL))
    )
    assert queue == {"low": 1, "top": 2, "high": 3}


def test_ten_thousand_tasks_are_no_matter() -> None:
    big = plan(*(task(f"t{number}", *{f"t{number * 7 // 10}", f"t{number // 3}"} - {f"t{number}"}) for number in range(10_000)))
    began = time.perf_counter()
    verify(big)
    topological(big)
    ready(big, {})
    blocked(big, {"t0": TaskState.FAILED})
    critical_path(big)
    assert len(priority(big)) == 10_000
    assert time.perf_counter() - began < 5  # measured: 0.3 s for all six
