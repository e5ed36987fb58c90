"""Run the benchmarks (all, or those named), print a table, and write .bench/<time>.json. Called by `make bench`.

Exits with 1 if a goal was missed and --strict was given: goals are for a quiet machine.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from rig import Row, Scratch, as_json, table

BENCHMARKS = ("starting", "overhead", "crowd", "makespan", "workspace")
RESULTS = Path(__file__).parents[1] / ".bench"


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description="measure against the goals")
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(BENCHMARKS)}; all unless given")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a goal was missed")
    wanted = parser.parse_args()
    rows: list[Row] = []
    for name in wanted.names or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="claudecluster-bench-", ignore_cleanup_errors=True) as folder:
            Path(folder).chmod(0o755)  # sandboxes run as another user and must be able to come here
            rows += import_module(name).measure(Scratch(Path(folder)))
    print(table(rows))
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{time.strftime('%Y%m%dT%H%M%S')}.json"
    file.write_text(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()[0], "rows": as_json(rows)}, indent=2) + "\n")
    print(f"\nwritten to {file}", file=sys.stderr)
    return int(wanted.strict and not all(row.met for row in rows))


if __name__ == "__main__":
    sys.exit(main())
