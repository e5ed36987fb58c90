"""Check `tests-untouched`: tests that existed before may not be changed or removed. New tests are welcome.

For tasks whose category is `test`, changing tests is the work itself: there it passes.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from claudecluster.checks.diff import BlindError, diff
from claudecluster.model.evidence import Evidence, Finding, Verdict
from claudecluster.model.task import Category
from claudecluster.ports.sandbox import Sandbox

FOLDERS = frozenset({"test", "tests", "__tests__", "spec", "specs", "testdata"})
FILES = (
    "test_*.py",
    "*_test.py",
    "conftest.py",
    "*_test.go",
    "*.test.[jt]s",
    "*.test.[jt]sx",
    "*.spec.[jt]s",
    "*.spec.[jt]sx",
    "*Test.java",
    "*_spec.rb",
)
SHOWN = 10


class UntouchedTests:
    """Fails an attempt that touches tests it was given. `protected` names further files, by path pattern (`ci/*.yml`)."""

    def __init__(self, protected: Sequence[str] = ()) -> None:
        self._protected = tuple(protected)

    @property
    def name(self) -> str:
        """The name it is chosen by."""
        return "tests-untouched"

    async def look(self, sandbox: Sandbox, evidence: Evidence) -> Finding:
        """Look at which files changed, by name."""
        if evidence.task.category is Category.TEST:
            return Finding(self.name, Verdict.PASS, "changing tests is this task's work")
        try:
            lines = await diff(sandbox, evidence, "--name-status")
        except BlindError as error:
            return Finding(self.name, Verdict.UNKNOWN, str(error))
        entries = [(status, path) for status, _, path in (line.partition("\t") for line in lines)]
        touched = [
            f"{path} was {'removed' if status == 'D' else 'changed'}" for status, path in entries if status != "A" and self._is_test(path)
        ]
        if not touched:
            return Finding(self.name, Verdict.PASS)
        rest = f" (and {len(touched) - SHOWN} more)" if len(touched) > SHOWN else ""
        return Finding(self.name, Verdict.FAIL, f"{'; '.join(touched[:SHOWN])}{rest}. Put it back: tests that were given stay as they are.")

    def _is_test(self, path: str) -> bool:
        whole = PurePosixPath(path)
        return (
            any(part.lower() in FOLDERS for part in whole.parts[:-1])
            or any(fnmatchcase(whole.name, pattern) for pattern in FILES)
            or any(fnmatchcase(path, pattern) for pattern in self._protected)
        )
