"""How soon things begin: `--help`, a submitted run's first task, a whole small run."""

import subprocess
import sys

from rig import CLI, Row, Scratch, median, task

TIMES = 15


def measure(scratch: Scratch) -> list[Row]:
    """Return medians."""
    python = median(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), TIMES)
    helped = median(lambda: subprocess.run([CLI, "--help"], check=True, stdout=subprocess.DEVNULL, env=scratch.env), TIMES)
    repo = scratch.repo()
    waits, walls = [], []
    for number in range(5):
        result = scratch.run(repo, {"tasks": [task(f"t{number}", f"echo {number} > f{number}")]})
        created, started = (at for _, _, at in scratch.facts(result["run"], "run.created", "task.started"))
        waits.append(started - created)
        walls.append(result["wall_s"])
    return [
        Row("--help", helped * 1000, "ms", 200, f"an empty Python takes {python * 1000:.0f} ms"),
        Row("submitted to first task started", sorted(waits)[2] * 1000, "ms", 150),
        Row("a run of one small task", sorted(walls)[2], "s", None, "the whole command"),
    ]
