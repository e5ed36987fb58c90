"""Agent `command` where its output is more than anybody wants to keep."""

import os
from pathlib import Path

from claudecluster.agents.command import MOST, CommandAgent
from claudecluster.model.evidence import Outcome
from claudecluster.model.task import Task
from claudecluster.ports.agent import Brief, Heard
from claudecluster.testing.places import OpenPlace


async def test_output_without_measure_is_cut_in_the_log_and_its_end_still_explains_a_failure(tmp_path: Path) -> None:
    heard: list[Heard] = []
    place = OpenPlace(tmp_path, env={"PATH": os.environ["PATH"]})
    line = "x" * 3999
    command = f"yes {line} | head -n {MOST // 4000 + 500}; echo the reason >&2; exit 3"
    report = await CommandAgent().run(Brief(Task("t", run=command), 1, "go", "s"), place, heard.append)
    assert report.outcome is Outcome.FAILED
    assert report.error.endswith("the reason")
    assert MOST < sum(len(one.text) + 1 for one in heard) < MOST + 10_000
    assert "what follows is not kept" in heard[-1].text
