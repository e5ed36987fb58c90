"""How near a run comes to the ideal: 100 tasks of five seconds on 20 workers cannot take less than 25 seconds."""

from rig import Row, Scratch, task

TASKS, SECONDS, WORKERS = 100, 5, 20


def measure(scratch: Scratch) -> list[Row]:
    """Return the whole command's wall-clock time over the ideal: start-up, gates and landings included."""
    plan = {
        "gates": [{"name": "true", "run": "true"}],
        "tasks": [task(f"t{number}", f"sleep {SECONDS}; echo {number} > made{number}.txt") for number in range(TASKS)],
    }
    result = scratch.run(scratch.repo(), plan, "--workers", str(WORKERS))
    landed = sum(entry["landed"] for entry in result["tasks"])
    if landed != TASKS:
        raise SystemExit(f"makespan: {landed} of {TASKS} tasks landed")
    ideal = TASKS * SECONDS / WORKERS
    return [
        Row(
            "makespan over ideal",
            result["wall_s"] / ideal,
            "x",
            1.10,
            f"{TASKS} tasks of {SECONDS} s on {WORKERS} workers: {result['wall_s']:.1f} s",
        ),
    ]
