"""What others build on changes only on purpose: generated pages are up to date, and a note in `changes/` names each one's fingerprint."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PINNED = ("docs/reference/settings.md", "docs/reference/task-file.schema.json")


def test_generated_pages_say_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "tools/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", PINNED)
def test_a_changed_contract_comes_with_a_note(path: str) -> None:
    wanted = f"pinned: {path} {hashlib.sha256((ROOT / path).read_bytes()).hexdigest()[:12]}"
    notes = [line.strip() for note in (ROOT / "changes").glob("[0-9]*.md") for line in note.read_text().splitlines()]
    assert wanted in notes, f"say in a note in changes/ what changed for users, with the line\n{wanted}"
