"""The ready-made checks look at real commits, through git in a sandbox."""

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from claudecluster.checks.secrets import Secrets, added
from claudecluster.checks.tests_untouched import UntouchedTests
from claudecluster.model.evidence import Changes, Evidence, Outcome, Report, Verdict
from claudecluster.model.task import Category, Task
from claudecluster.testing.places import OpenPlace

GITHUB = "ghp_" + "a1B2" * 9
BEFORE = {"src/a.py": "one = 1\ntwo = 2\n", "tests/test_a.py": "def test_a(): pass\n", "ci/build.yml": "x: 1\n"}


def git(repo: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=repo, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def attempt(make_repo: Callable[..., Path]) -> Callable[..., tuple[OpenPlace, Evidence]]:
    """Commit files (None removes one) on top of BEFORE; return the place and what is known."""

    def make(files: Mapping[str, str | None], task: Task | None = None) -> tuple[OpenPlace, Evidence]:
        repo = make_repo("work", BEFORE)
        base = git(repo, "rev-parse", "HEAD")
        for path, text in files.items():
            if text is None:
                (repo / path).unlink()
            else:
                (repo / path).parent.mkdir(parents=True, exist_ok=True)
                (repo / path).write_text(text)
        git(repo, "add", "--all")
        git(repo, "commit", "--quiet", "--allow-empty", "--message=Attempt")
        changes = Changes(base, git(repo, "rev-parse", "HEAD"), git(repo, "rev-parse", "HEAD^{tree}"), tuple(files))
        place = OpenPlace(repo, env={"PATH": os.environ["PATH"], "HOME": str(repo)})
        return place, Evidence(task or Task("t", prompt="x"), 1, Report(Outcome.FINISHED), changes)

    return make


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "a private key"),
        (f"token = '{GITHUB}'\n", "a GitHub token"),
        ("id: AKIAABCDEFGHIJKLMNOP\n", "an AWS access key"),
        (f"key = sk-ant-api03-{'x' * 40}\n", "an Anthropic key"),
    ],
)
async def test_an_added_secret_fails_and_is_not_repeated(attempt: Callable[..., tuple[OpenPlace, Evidence]], text: str, kind: str) -> None:
    finding = await Secrets().look(*attempt({"src/new.py": f"fine = True\n{text}"}))
    assert finding.verdict is Verdict.FAIL
    assert f"src/new.py:2 looks like {kind}" in finding.why
    assert text.rsplit(maxsplit=1)[-1] not in finding.why


async def test_ordinary_lines_pass(attempt: Callable[..., tuple[OpenPlace, Evidence]]) -> None:
    text = "password = input()\n# BEGIN PRIVATE notes\nsk-learn = 1\ntask-description-of-a-rather-long-name-that-means-no-harm = 2\n"
    assert (await Secrets().look(*attempt({"src/a.py": text}))).verdict is Verdict.PASS


async def test_a_secret_that_is_taken_out_passes(
    attempt: Callable[..., tuple[OpenPlace, Evidence]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BEFORE, "src/old.py", f"token = '{GITHUB}'\n")
    assert (await Secrets().look(*attempt({"src/old.py": None}))).verdict is Verdict.PASS


async def test_the_trees_own_diff_settings_hide_nothing(attempt: Callable[..., tuple[OpenPlace, Evidence]]) -> None:
    place, evidence = attempt({"src/new.py": f"token = '{GITHUB}'\n", ".gitattributes": "*.py diff=quiet\n"})
    git(Path(place.work), "config", "diff.quiet.command", "true")
    git(Path(place.work), "config", "diff.external", "true")
    assert (await Secrets().look(place, evidence)).verdict is Verdict.FAIL


async def test_what_cannot_be_seen_is_unknown(attempt: Callable[..., tuple[OpenPlace, Evidence]], tmp_path: Path) -> None:
    _, evidence = attempt({})
    elsewhere = OpenPlace(tmp_path, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)})
    for check in (Secrets(), UntouchedTests()):
        finding = await check.look(elsewhere, evidence)
        assert finding.verdict is Verdict.UNKNOWN
        assert "exit code" in finding.why


def test_added_lines_are_told_from_the_heads_of_other_files() -> None:
    lines = ["--- a/x", "+++ b/x", "@@ -1,0 +2,2 @@ fn", "+++ b/not-a-file", "+last", "--- a/y", "+++ b/y", "@@ -3 +3 @@", "-old", "+new"]
    assert list(added(lines)) == [("x:2", "++ b/not-a-file"), ("x:3", "last"), ("y:3", "new")]


@pytest.mark.parametrize("text", ["def test_a(): assert True\n", None])
async def test_a_given_test_that_is_changed_or_removed_fails(attempt: Callable[..., tuple[OpenPlace, Evidence]], text: str | None) -> None:
    finding = await UntouchedTests().look(*attempt({"src/a.py": "one = 2\n", "tests/test_a.py": text}))
    assert finding.verdict is Verdict.FAIL
    assert "tests/test_a.py" in finding.why
    assert "src/a.py" not in finding.why


async def test_new_tests_and_other_changes_pass(attempt: Callable[..., tuple[OpenPlace, Evidence]]) -> None:
    finding = await UntouchedTests().look(
        *attempt({"src/a.py": "one = 2\n", "tests/test_b.py": "def test_b(): pass\n", "contest.py": "x = 1\n"})
    )
    assert finding.verdict is Verdict.PASS


async def test_a_task_about_tests_may_change_them(attempt: Callable[..., tuple[OpenPlace, Evidence]]) -> None:
    task = Task("t", prompt="x", category=Category.TEST)
    assert (await UntouchedTests().look(*attempt({"tests/test_a.py": None}, task))).verdict is Verdict.PASS


async def test_further_files_can_be_protected_by_pattern(attempt: Callable[..., tuple[OpenPlace, Evidence]]) -> None:
    place, evidence = attempt({"ci/build.yml": "x: 2\n"})
    assert (await UntouchedTests().look(place, evidence)).verdict is Verdict.PASS
    assert (await UntouchedTests(["ci/*.yml"]).look(place, evidence)).verdict is Verdict.FAIL
