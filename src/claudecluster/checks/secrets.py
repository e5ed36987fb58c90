"""Check `secrets`: no added line may look like a private key or a token. It knows well-known shapes only, so that it seldom cries wolf."""

import re
from collections.abc import Iterator, Sequence

from claudecluster.checks.diff import BlindError, diff
from claudecluster.model.evidence import Evidence, Finding, Verdict
from claudecluster.ports.sandbox import Sandbox

SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(shape))
    for name, shape in (
        ("a private key", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
        ("an AWS access key", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
        ("an Anthropic key", r"\bsk-ant-[a-z0-9]+-[A-Za-z0-9_-]{20,}"),
        ("an OpenAI key", r"\bsk-(?:proj-)?[A-Za-z0-9_-]{40,}"),
        ("a GitHub token", r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})"),
        ("a GitLab token", r"\bglpat-[A-Za-z0-9_-]{20,}"),
        ("a Slack token", r"\bxox[abeprs]-[A-Za-z0-9-]{20,}"),
        ("a Google API key", r"\bAIza[A-Za-z0-9_-]{35}\b"),
        ("a Stripe key", r"\b[rs]k_live_[A-Za-z0-9]{20,}"),
        ("an npm token", r"\bnpm_[A-Za-z0-9]{36}\b"),
        ("a PyPI token", r"\bpypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{20,}"),
    )
)
HUNK = re.compile(r"@@ -\S+ \+(\d+)")
SHOWN = 5


class Secrets:
    """Fails an attempt that adds what looks like a secret; says where, never what."""

    @property
    def name(self) -> str:
        """The name it is chosen by."""
        return "secrets"

    async def look(self, sandbox: Sandbox, evidence: Evidence) -> Finding:
        """Read the added lines."""
        try:
            lines = await diff(sandbox, evidence, "--unified=0")
        except BlindError as error:
            return Finding(self.name, Verdict.UNKNOWN, str(error))
        found = [f"{place} looks like {kind}" for place, text in added(lines) for kind, shape in SHAPES if shape.search(text)]
        if not found:
            return Finding(self.name, Verdict.PASS)
        rest = f" (and {len(found) - SHOWN} more)" if len(found) > SHOWN else ""
        return Finding(self.name, Verdict.FAIL, f"{'; '.join(found[:SHOWN])}{rest}. Take it out: what lands stays in the history.")


def added(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each line that a diff without context adds, as (path:line, text)."""
    path, number, left = "", 0, 0
    for line in lines:
        if left == 0 and line.startswith("+++ "):
            path = line[4:].removeprefix("b/").rstrip("\t")
        elif left == 0 and (hunk := HUNK.match(line)):
            number = int(hunk[1])
            left = _length(line)
        elif line.startswith("+") and left:
            yield f"{path}:{number}", line[1:]
            number += 1
            left -= 1


def _length(hunk: str) -> int:
    """Return how many lines a hunk adds, as its head says: a line of content may look like a head itself."""
    counted = re.match(r"@@ -\S+ \+\d+(?:,(\d+))?", hunk)
    return int(counted[1]) if counted and counted[1] is not None else 1
