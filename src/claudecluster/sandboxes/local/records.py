"""What is written down about each sandbox, so that a new process can find, re-attach and sweep what a dead one left. Called by `process` and `none`.

One small folder per sandbox in the state folder; only this user can read it.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from claudecluster.kit.processes import born
from claudecluster.model.errors import Refused, SandboxLost, Unavailable
from claudecluster.model.place import Bind, Layer, Limits, SandboxSpec

_RECORD = "record.json"
_RUN = "run-"
_PATIENCE = 2.0  # seconds a process may take to end


@dataclass(frozen=True, slots=True)
class Record:
    """A sandbox as it was asked for, and the control groups made for it."""

    spec: SandboxSpec
    groups: tuple[Path, ...] = ()


class Records:
    """The state folder of a back end."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def folder(self, name: str) -> Path:
        """Return the sandbox's own folder, which may not exist. Raises Refused for names no folder can have."""
        folder = self.state / f"@{quote(name, safe='')}"
        if not name or len(folder.name) > 200:
            raise Refused(f"{name!r} cannot be a sandbox's name: it is empty or too long")
        return folder

    def write(self, record: Record) -> None:
        """Keep the record, in one step. Raises Unavailable."""
        folder = self.folder(record.spec.name)
        try:
            self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            draft = folder / f"{_RECORD}.new"
            draft.write_text(
                json.dumps(
                    {"spec": dataclasses.asdict(dataclasses.replace(record.spec, env=dict(record.spec.env))), "groups": record.groups},
                    default=str,
                )
            )
            draft.chmod(0o600)
            draft.replace(folder / _RECORD)
        except OSError as error:
            raise Unavailable(f"cannot write to {folder}: {error.strerror}") from error

    def read(self, name: str) -> Record | None:
        """Return the record; None if there is none or it was never finished."""
        try:
            found = json.loads((self.folder(name) / _RECORD).read_bytes())
            return Record(_spec(found["spec"]), tuple(Path(group) for group in found["groups"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remove(self, name: str) -> None:
        """Forget the sandbox and all that is in its folder. Unknown names are fine."""
        shutil.rmtree(self.folder(name), ignore_errors=True)

    def names(self, prefix: str) -> list[str]:
        """Return the names of all that have a folder, finished or not."""
        with contextlib.suppress(FileNotFoundError):
            found = [unquote(entry.name[1:]) for entry in self.state.glob("@*")]
            return sorted(name for name in found if name.startswith(prefix))
        return []

    @contextlib.contextmanager
    def running(self, name: str, pid: int) -> Iterator[None]:
        """Keep the outermost process of a command on record while it runs."""
        mark = self.folder(name) / f"{_RUN}{pid}"
        try:
            mark.write_text(born(pid))
        except OSError as error:
            raise SandboxLost(f"sandbox {name} is gone: {error.strerror}", hint="make a new attempt") from error
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)

    def end_runs(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send what is on record as running a signal and wait for its end. Unknown names are fine. Blocks for up to two seconds. Raises Unavailable if something lives on."""
        with contextlib.suppress(FileNotFoundError):
            marks = [entry for entry in self.folder(name).iterdir() if entry.name.startswith(_RUN)]
            for mark in marks:
                _end(int(mark.name.removeprefix(_RUN)), mark.read_text(), number)


def _end(pid: int, start: str, number: signal.Signals) -> None:
    deadline = time.monotonic() + _PATIENCE
    while start and born(pid) == start:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if time.monotonic() > deadline:
            raise Unavailable(f"process {pid} does not end")
        time.sleep(0.002)


def _spec(found: dict[str, Any]) -> SandboxSpec:
    layers = [
        Layer(tuple(Path(lower) for lower in layer["lower"]), Path(layer["upper"]), Path(layer["work"]), layer["at"])
        for layer in found.pop("layers")
    ]
    binds = [Bind(Path(bind["source"]), bind["at"], bind["writable"]) for bind in found.pop("binds")]
    socket = found.pop("socket")
    limits = Limits(**found.pop("limits"))
    return SandboxSpec(layers=tuple(layers), binds=tuple(binds), socket=Path(socket) if socket else None, limits=limits, **found)
