"""An attempt that began with conflict markers has a gate that none is left."""

import subprocess
from pathlib import Path

import pytest

from claudecluster.engine.orders import Errand
from claudecluster.engine.steps.attempt import _resolved


@pytest.mark.parametrize(("text", "passes"), [("a\n<<<<<<< ours\nb\n", False), ("a\n>>>>>>> theirs\n", False), ("a\n=======\nb\n", True)])
def test_a_marker_left_in_a_file_is_red(tmp_path: Path, text: str, passes: bool) -> None:
    (tmp_path / "it's.txt").write_text(text)
    (gate,) = _resolved(Errand("r1", "t", 2, 1, "", "", conflicts=("it's.txt", "deleted.txt")))
    done = subprocess.run(["sh", "-c", gate.run], cwd=tmp_path, check=False, capture_output=True)
    assert (done.returncode == 0) is passes


def test_an_attempt_without_conflicts_has_no_such_gate() -> None:
    assert _resolved(Errand("r1", "t", 1, 1, "", "")) == ()
