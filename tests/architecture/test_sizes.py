"""Quality is decided in the tail, so the largest module, class and folder have a limit."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/claudecluster"
MODULES = sorted(SOURCE.rglob("*.py"))
FOLDERS = sorted(path for path in [SOURCE, *SOURCE.rglob("*")] if path.is_dir() and path.name != "__pycache__")
MODULE, CLASS, FOLDER, PORTS = 400, 250, 12, 450


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def classes(path: Path) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_can_be_read_in_one_go(path: Path) -> None:
    assert lines(path) <= MODULE


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_class_is_one_thing(path: Path) -> None:
    long = {node.name: size for node in classes(path) if (size := (node.end_lineno or 0) - node.lineno + 1) > CLASS}
    assert not long


@pytest.mark.parametrize("path", FOLDERS, ids=name)
def test_a_folder_can_be_taken_in_at_a_glance(path: Path) -> None:
    assert len([file for file in path.iterdir() if file.suffix == ".py"]) <= FOLDER


def test_the_front_page_stays_a_page() -> None:
    assert sum(lines(path) for path in (SOURCE / "ports").rglob("*.py")) <= PORTS


def test_the_guide_for_agents_stays_short() -> None:
    assert lines(ROOT / "AGENTS.md") <= 150
