"""Floors, entry points, and what starting costs. Which modules are loaded is exact where a time limit would not be."""

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("dbos", "sqlalchemy", "alembic", "aiohttp", "cryptography", "claude_agent_sdk", "opentelemetry", "uvicorn")
ENTRIES = [entry for entry in distribution("claudecluster").entry_points if entry.group.startswith(("claudecluster.", "console_scripts"))]


def loaded(code: str) -> set[str]:
    """Return the names of all modules in a fresh interpreter that ran the code."""
    report = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n'.join(['', '--', *sys.modules]))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.rpartition("\n--\n")[2].split())


def test_imports_go_downwards_only() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(lint), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.group}:{entry.name}")
def test_an_entry_point_loads(entry: object) -> None:
    assert callable(entry.load())  # type: ignore[attr-defined]  # importlib.metadata.EntryPoint


def test_there_are_entry_points_to_load() -> None:
    assert {entry.group for entry in ENTRIES} >= {"console_scripts", "claudecluster.agents", "claudecluster.sandboxes"}


def test_importing_the_package_loads_nothing_else() -> None:
    brought = loaded("import claudecluster") - loaded("pass")
    assert brought == {"claudecluster"}


def test_asking_for_help_loads_no_engine() -> None:
    modules = loaded("sys.argv = ['claudecluster', '--help']; from claudecluster.cli.main import main; main()")
    assert "claudecluster.cli.main" in modules
    assert [name for name in HEAVY if name in modules] == []
