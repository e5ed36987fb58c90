"""Did an attempt stay inside its task's `files`? Pure; its finding joins those of the other checks.

Globs are relative to the repository's root: `*` and `?` stay inside one folder, `**` crosses folders, and a name
without wildcards that is a folder takes everything in it.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from claudecluster.model.evidence import Changes, Finding, Verdict
from claudecluster.model.task import Task

CHECK = "scope"
SHOWN = 10


def scope(task: Task, changes: Changes) -> Finding:
    """Return PASS if every changed path is inside the task's scope, or it has none; else FAIL naming those outside."""
    if not task.files:
        return Finding(CHECK, Verdict.PASS, "The task may change any file.")
    outside = [path for path in changes.files if not inside(task.files, path)]
    if not outside:
        return Finding(CHECK, Verdict.PASS, "Every changed file is inside the task's scope.")
    named = ", ".join(outside[:SHOWN]) + (f" and {len(outside) - SHOWN} more" if len(outside) > SHOWN else "")
    return Finding(CHECK, Verdict.FAIL, f"changed files outside its scope: {named} (allowed: {', '.join(task.files)})")


def inside(globs: Iterable[str], path: str) -> bool:
    """Tell whether one of the globs takes the path."""
    return any(_pattern(glob).fullmatch(path) for glob in globs)


@lru_cache(maxsize=4096)
def _pattern(glob: str) -> re.Pattern[str]:
    parts = [part for part in glob.split("/") if part not in {"", "."}]
    if not parts:
        return re.compile(r".*", re.DOTALL)  # the root: everything
    *folders, last = parts
    head = "".join("(?:[^/]+/)*" if folder == "**" else f"{_segment(folder)}/" for folder in folders)
    if last == "**":
        end = ".+"
    elif re.search(r"[*?\[]", last):
        end = _segment(last)
    else:
        end = f"{re.escape(last)}(?:/.+)?"
    try:
        return re.compile(head + end, re.DOTALL)
    except re.error:  # a range that runs backwards, say: take the glob at its word
        return re.compile(re.escape(glob))


def _segment(part: str) -> str:
    out: list[str] = []
    at = 0
    while at < len(part):
        letter = part[at]
        end = part.find("]", at + 2) if letter == "[" else -1
        if end > 0:
            out.append(_one_of(part[at + 1 : end]))
            at = end
        else:
            out.append({"*": "[^/]*", "?": "[^/]"}.get(letter) or re.escape(letter))
        at += 1
    return "".join(out)


def _one_of(letters: str) -> str:
    inverted = letters[0] in "!^"
    body = re.sub(r"([\\\[\]^&|~])", r"\\\1", letters[inverted:])
    return f"(?!/)[{'^' if inverted else ''}{body}]" if body else re.escape(f"[{letters}]")
