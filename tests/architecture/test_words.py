"""What every file says of itself, and what no file may say."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/claudecluster"
MODULES = sorted(SOURCE.rglob("*.py"))
CODE = [path for folder in ("src", "tests", "benchmarks", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]
VAGUE = re.compile(r"(Manager|Handler|Helper|Utils?|Context|Info)$")
UNEXPLAINED = re.compile(r"#\s*(?:noqa(?!: [A-Z0-9, ]+ - \S)|type:\s*ignore(?!\[)|pragma)", re.IGNORECASE)
MACHINE = re.compile(
    r"/wor[k]/(?:main|shared)|/roo[t]/\.|/op[t]/(?:pypi|wheels)"  # paths of somebody's machine
    r"|(?:pypi|pythonhosted|npmjs)\.(?:org|com)[/\"'\s]|(?:extra-)?index[-_]ur[l]\s*[=:]?\s*[\"']?https?:",  # package registries
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split("\0")
    return [ROOT / path for path in listed if path and (ROOT / path).is_file()]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_opens_with_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=name)
def test_importing_a_package_does_nothing(path: Path) -> None:
    allowed = (ast.Expr, ast.ImportFrom, ast.Import, ast.Assign)  # a docstring, re-exports and their __all__
    assert [type(node).__name__ for node in ast.parse(path.read_text()).body if not isinstance(node, allowed)] == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_name_says_what_a_thing_is(path: Path) -> None:
    named = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    assert [word for word in [*named, path.stem.title()] if VAGUE.search(word)] == []


@pytest.mark.parametrize("path", CODE, ids=name)
def test_an_exception_to_a_rule_gives_its_reason(path: Path) -> None:
    lines = enumerate(path.read_text().splitlines(), start=1)
    assert [f"{number}: {line.strip()}" for number, line in lines if UNEXPLAINED.search(line) and "re.compile" not in line] == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_time_for_types_is_not_another_floor(path: Path) -> None:
    assert "TYPE_CHECKING" not in path.read_text()


def test_no_file_names_the_machine_it_was_written_on() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # a picture or an archive
        found += [f"{name(path)}: {match.group()}" for match in MACHINE.finditer(text)]
    assert found == []


def test_the_lock_file_pins_every_package_with_hashes() -> None:
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text().strip())
    assert len(entries) > 50
    assert [entry.splitlines()[0] for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []


def test_the_lock_file_has_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        project["dependency-groups"]["dev"],
    ]
    wanted = {re.split(r"[^\w.-]", entry)[0].lower() for group in groups for entry in group}
    locked = {line.split("==")[0].lower() for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line}
    assert wanted - locked == set(), "make lock"
