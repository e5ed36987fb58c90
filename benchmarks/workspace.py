"""How soon a workspace is ready, by `workspace_ready.py`, whose figures become rows here."""

import json
import subprocess
import sys
from pathlib import Path

from rig import Row, Scratch


def measure(scratch: Scratch) -> list[Row]:
    """Return, for a small and a large repository, the time until ready and how often that fits into one `git worktree add`."""
    script = Path(__file__).with_name("workspace_ready.py")
    done = subprocess.run(
        [sys.executable, str(script), "--json", "--folder", str(scratch.folder)], stdout=subprocess.PIPE, text=True, check=True
    )
    rows = []
    for found in json.loads(done.stdout):
        note = f"`git worktree add`: {found['git_worktree_add']:g} ms, {found['worktree_ratio']:g} x as long"
        rows.append(Row(f"workspace ready, {found['files']:,} files", found["ready"], "ms", 100, note))
        rows.append(Row(f"64 workspaces at once, {found['files']:,} files", found["64_at_once"], "ms"))
    return rows
