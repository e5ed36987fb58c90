"""A check that likes it quiet: no changed file may be all capitals."""

from claudecluster.model.errors import NotFound
from claudecluster.model.evidence import Evidence, Finding, Verdict
from claudecluster.ports.sandbox import Sandbox


class NoShouting:
    """Fails an attempt that changed a text file into capitals."""

    name = "acme-no-shouting"

    async def look(self, sandbox: Sandbox, evidence: Evidence) -> Finding:
        """Look at every changed file's first line."""
        for path in evidence.changes.files:
            try:
                first = (await sandbox.read(path)).decode(errors="replace").partition("\n")[0]
            except NotFound:
                continue  # deleting a file is a quiet thing to do
            if first.isupper():
                return Finding(self.name, Verdict.FAIL, f"{path} is shouting")
        return Finding(self.name, Verdict.PASS)
