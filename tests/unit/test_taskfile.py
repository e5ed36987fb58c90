import json
import time
from pathlib import Path

import pytest

from claudecluster.assembly.schema import json_schema
from claudecluster.assembly.taskfile import Wishes, plan
from claudecluster.model.errors import Refused
from claudecluster.model.task import Category, Gate, Plan, Priority, Task

FULL = """\
goal: Better numbers
base: main
setup: ["pip install -e ."]
share: [".venv"]
gates:
  - {name: tests, run: "pytest -q", timeout: 300}
tasks:
  - id: fix-gcd
    prompt: Fix it.
    priority: high
    category: refactor
    model: big
    files: ["src/**"]
    gates: [{name: lint, run: ruff check}]
    timeout: 60
    max_attempts: 2
    env: {K: V, PORT: 3000}
  - id: count
    run: "wc -l *.py > COUNT"
    needs: [fix-gcd]
"""


def read(tmp_path: Path, text: str | bytes, wishes: Wishes | None = None, name: str = "tasks.yaml") -> Plan:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return plan(file, wishes or Wishes())


def refusal(tmp_path: Path, text: str | bytes, name: str = "tasks.yaml") -> tuple[str, str]:
    with pytest.raises(Refused) as refused:
        read(tmp_path, text, name=name)
    message = refused.value.message
    assert "\n" not in message
    assert refused.value.hint, "every refusal says what to do next"
    return message.replace(f"{tmp_path}/", ""), refused.value.hint


def test_a_full_file_becomes_the_plan_it_describes(tmp_path: Path) -> None:
    made = read(tmp_path, FULL)
    assert made.gates == (Gate("tests", "pytest -q", 300.0),)
    assert (made.goal, made.base, made.setup, made.share) == ("Better numbers", "main", ("pip install -e .",), (".venv",))
    assert made.tasks[0] == Task(
        id="fix-gcd",
        prompt="Fix it.",
        priority=Priority.HIGH,
        category=Category.REFACTOR,
        agent="claude-code",
        model="big",
        files=("src/**",),
        gates=(Gate("lint", "ruff check"),),
        timeout=60.0,
        max_attempts=2,
        env={"K": "V", "PORT": "3000"},
    )
    assert made.tasks[1] == Task(id="count", run="wc -l *.py > COUNT", needs=("fix-gcd",), agent="command")


def test_json_says_the_same_as_yaml(tmp_path: Path) -> None:
    task = {"id": "a", "run": "true", "timeout": 5}
    assert read(tmp_path, json.dumps({"tasks": [task]}), name="t.json") == read(tmp_path, "tasks: [{id: a, run: 'true', timeout: 5}]")


def test_the_command_line_fills_in_what_tasks_do_not_say(tmp_path: Path) -> None:
    text = "tasks: [{id: a, prompt: x, timeout: 5, max_attempts: 1, model: m, agent: other}, {id: b, prompt: y}, {id: c, run: z}]"
    made = read(tmp_path, text, Wishes(agent="mine", model="big", timeout=9, max_attempts=7))
    assert [(task.agent, task.model, task.timeout, task.max_attempts) for task in made.tasks] == [
        ("other", "m", 5.0, 1),
        ("mine", "big", 9.0, 7),
        ("command", "big", 9.0, 7),
    ]


def test_a_goal_alone_is_one_task() -> None:
    made = plan(None, Wishes(goal="Fix the tests"))
    assert made.tasks == (Task(id="task", prompt="Fix the tests"),)
    assert made.goal == "Fix the tests"


def test_a_goal_for_agent_command_is_the_command() -> None:
    assert plan(None, Wishes(goal="make fmt", agent="command")).tasks == (Task(id="task", run="make fmt", agent="command"),)


def test_a_goal_beside_a_file_replaces_the_files_goal(tmp_path: Path) -> None:
    assert read(tmp_path, FULL, Wishes(goal="Mine")).goal == "Mine"


def test_gates_of_the_command_line_get_names_that_are_unique(tmp_path: Path) -> None:
    made = read(
        tmp_path, "gates: [{name: pytest-q, run: x}]\ntasks: [{id: a, run: y}]", Wishes(gates=("pytest -q", "pytest -q -x", "'\"'"))
    )
    assert [gate.name for gate in made.gates] == ["pytest-q", "pytest-q-2", "pytest-q-3", "gate-3"]


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("tasks:\n  - id: a\n    promt: x", "tasks.yaml line 3: unknown key `promt` in task `a`", "`prompt`"),
        ("task: []", "tasks.yaml line 1: unknown key `task`", "`tasks`"),
        ("gates: [{name: a, runn: b}]\ntasks: [{id: a, run: b}]", "tasks.yaml line 1: unknown key `runn`", "`run`"),
        ("tasks:\n- id: a\n  run: b\n  needs: c", "tasks.yaml line 4: `needs` in task `a` must be a list, not text ('c')", "[c]"),
        ("tasks:\n- id: a\n  run: b\n  needs:\n  - 5", "line 5: item 1 of `needs` in task `a` must be text, not a number (5)", "quotes"),
        ("tasks:\n- id: a\n  run: b\n  timeout: soon", "line 4: `timeout` in task `a` must be a number, not text ('soon')", ""),
        ("tasks:\n- id: a\n  run: b\n  timeout: yes", "line 4: `timeout` in task `a` must be a number, not true or false", ""),
        ("tasks:\n- id: a\n  run: b\n  timeout: 0", "line 4: `timeout` in task `a` is 0: ", ""),
        ("tasks:\n- id: a\n  run: b\n  timeout: .inf", "line 4: `timeout` in task `a`", ""),
        ("tasks:\n- id: a\n  run: b\n  timeout: 700000", "line 4: `timeout` in task `a` is 700000: ", ""),
        (
            "tasks:\n- id: a\n  run: b\n  max_attempts: 1.5",
            "line 4: `max_attempts` in task `a` must be a whole number, not a number (1.5)",
            "",
        ),
        ("tasks:\n- id: a\n  run: b\n  max_attempts: 0", "line 4: `max_attempts` in task `a` is 0: ", ""),
        ("tasks:\n- id: a\n  run: b\n  max_attempts: 101", "line 4: `max_attempts` in task `a` is 101: ", ""),
        ("tasks:\n- id: a\n  run: 5", "line 3: `run` in task `a` must be text, not a number (5)", "quotes"),
        ("tasks:\n- id: 7\n  run: x", "line 2: `id` in task number 1 must be text", "quotes"),
        ("tasks:\n- id: A b\n  run: x", "line 2: `id` in task `A b` is 'A b', which does not fit", "lower-case"),
        ("tasks:\n- id: -a\n  run: x", "line 2: `id` in task `-a` is '-a', which does not fit", "lower-case"),
        ("tasks:\n- id: " + "a" * 65 + "\n  run: x", "line 2: `id` in task", ""),
        (
            "tasks:\n- id: a\n  run: x\n  priority: urgent",
            "line 4: `priority` in task `a` must be low, medium, high or critical, not 'urgent'",
            "",
        ),
        ("tasks:\n- id: a\n  run: x\n  category: 3", "line 4: `category` in task `a` must be", ""),
        ("tasks:\n- id: a\n  run: x\n  env: {1A: b}", "line 4: ", ""),
        ("tasks:\n- id: a\n  run: x\n  env: {A: yes}", "line 4: `A` in task `a` must be text", "quotes"),
        ("tasks:\n- id: a\n  run: x\n  files: ['../x']", "line 4: item 1 of `files` in task `a` must be a path inside the repository", ""),
        ("share: ['/etc']\ntasks: [{id: a, run: x}]", "line 1: item 1 of `share` must be a path inside the repository", ""),
        ("tasks:\n- run: x", "line 2: `id` is missing in task number 1", ""),
        ("tasks:\n- id: a", "line 2: task `a` says nothing to do", "prompt"),
        ("tasks:\n- id: a\n  prompt: '  '", "line 2: task `a` says nothing to do", "prompt"),
        ("tasks:\n- id: a\n  prompt: x\n  agent: command", "line 2: task `a` has agent `command` but no command", "run"),
        ("tasks:\n- id: a\n  run: x\n  agent: claude-code", "line 2: task `a` has agent `claude-code` but no prompt", "prompt"),
        ('tasks:\n- id: a\n  run: "a\\0b"', "line 3: `run` in task `a` must not hold a NUL", ""),
        ("tasks: []", "line 1: `tasks` must not be an empty list", ""),
        ("goal: x", "tasks.yaml line 1: `tasks` is missing", "schema"),
        ("tasks: x", "line 1: `tasks` must be a list, not text ('x')", ""),
        ("tasks: [x]", "line 1: task number 1 must be a set of `key: value` pairs, not text ('x')", ""),
        ("- a", "line 1: the file must hold keys such as `tasks:`, not a list", ""),
        ("just words", "line 1: the file must hold keys such as `tasks:`, not text ('just words')", ""),
        ("", "tasks.yaml is empty", ""),
        ("# only a comment\n", "tasks.yaml is empty", ""),
        ("tasks:\n- id: a\n  run: x\n- id: a\n  run: y", "line 4: task id `a` is used twice (first on line 2)", ""),
        ("gates: [{name: a, run: x},\n {name: a, run: y}]\ntasks: [{id: a, run: x}]", "line 2: two gates are named `a`", ""),
        ("gates: [{name: a}]\ntasks: [{id: a, run: x}]", "line 1: gate `a` has no command", "run"),
        ("gates: [{name: a, run: x, check: y}]\ntasks: [{id: a, run: x}]", "line 1: gate `a` has both", "run"),
        ("tasks:\n- id: abc\n  run: x\n- id: b\n  run: x\n  needs: [abd]", "line 6: task `b` needs `abd`, which is not a task", "`abc`"),
        ("tasks:\n- id: a\n  run: x\n  run: y", "line 4: key `run` is given twice", "one of the two"),
        ("tasks:\n- id: a\n  run: 'x", "line 3", ""),
        ("tasks:\n- id: a\n\trun: x", "line 3", ""),
        ("tasks: !!python/object/apply:os.system ['true']", "line 1: could not determine a constructor", "tags"),
        ("a: 2024-99-99", "tasks.yaml", ""),
        ("a: 1\n---\nb: 2", "line 2: expected a single document", ""),
        (b"tasks:\n- id: \xff", "line 2: not UTF-8 text", "UTF-8"),
        (b"a: \x07", "tasks.yaml: ", ""),
    ],
)
def test_a_mistake_is_one_line_with_its_place_and_a_hint(tmp_path: Path, text: str | bytes, said: str, hint: str) -> None:
    message, advice = refusal(tmp_path, text)
    assert said in message
    assert hint in advice


def test_a_cycle_is_named_in_the_order_of_the_circle(tmp_path: Path) -> None:
    message, _ = refusal(tmp_path, "tasks: [{id: a, run: x, needs: [c]}, {id: b, run: x, needs: [a]}, {id: c, run: x, needs: [b]}]")
    assert "a -> c -> b -> a" in message


def test_a_task_that_needs_itself_is_refused(tmp_path: Path) -> None:
    assert "'a' needs itself" in refusal(tmp_path, "tasks: [{id: a, run: x, needs: [a]}]")[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"tasks": [\n{"id": "a", "run": 5}]}', "tasks.json line 2: `run` in task `a` must be text"),
        ('{"tasks": [\n{"id": "a",,}]}', "tasks.json line 2: "),
        ('{"goal": "a", "goal": "b"}', "tasks.json: key `goal` is given twice"),
        ("", "tasks.json is empty"),
        ("[" * 100_000, "tasks.json: nested too deeply"),
    ],
)
def test_json_mistakes_have_their_place_too(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text, name="tasks.json")[0]


def test_deep_nesting_is_refused_not_a_crash(tmp_path: Path) -> None:
    assert "tasks.yaml" in refusal(tmp_path, "a: " + "[" * 20_000)[0]


def test_aliases_cannot_make_a_small_file_huge(tmp_path: Path) -> None:
    lines = ["a: &a [x, x]", *[f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]" for n in range(24)]]
    started = time.perf_counter()
    refusal(tmp_path, "\n".join(lines))
    assert time.perf_counter() - started < 5


def test_a_folder_and_a_missing_file_are_said_to_be_that(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="is a folder"):
        plan(tmp_path, Wishes())
    with pytest.raises(Refused, match="no task file"):
        plan(tmp_path / "none.yaml", Wishes())
    with pytest.raises(Refused, match="no task file"):
        plan(tmp_path / "none.yaml" / "deeper", Wishes())


@pytest.mark.parametrize(
    "wishes",
    [
        Wishes(),
        Wishes(goal="  "),
        Wishes(goal="x", max_attempts=0),
        Wishes(goal="x", timeout=0),
        Wishes(goal="x", gates=(" ",)),
        Wishes(goal="a\0b"),
        Wishes(goal="a\udcffb"),
        Wishes(goal="x", gates=("a\udcffb",)),
    ],
)
def test_wishes_that_make_no_sense_are_refused(wishes: Wishes) -> None:
    with pytest.raises(Refused) as refused:
        plan(None, wishes)
    assert refused.value.hint


def test_ten_thousand_tasks_are_read_and_checked_in_two_seconds(tmp_path: Path) -> None:
    tasks = [
        f"  - id: task-{n}\n    prompt: Do part {n}.\n    needs: [{f'task-{n - 1}' if n else ''}]\n    files: ['src/{n}/**']"
        for n in range(10_000)
    ]
    started = time.process_time()
    made = read(tmp_path, "gates: [{name: t, run: x}]\ntasks:\n" + "\n".join(tasks))
    assert len(made.tasks) == 10_000
    assert time.process_time() - started < 2


def test_the_schema_describes_every_key_and_refuses_others() -> None:
    schema = json_schema()
    task = schema["$defs"]["TaskEntry"]
    assert schema["additionalProperties"] is task["additionalProperties"] is False
    assert set(task["properties"]) == set(Task.__dataclass_fields__)
    assert [name for name, entry in task["properties"].items() if not entry.get("description")] == []


@pytest.mark.parametrize("key", ["1", "null", "[1, 2]", "{a: b}", "yes"])
def test_a_key_that_is_not_text_is_refused_with_its_line(tmp_path: Path, key: str) -> None:
    message, _ = refusal(tmp_path, f"goal: g\n{key}: 2\ntasks: [{{id: a, run: x}}]\n")
    assert message.startswith("tasks.yaml line 2: ")
    assert "must be text" in message
