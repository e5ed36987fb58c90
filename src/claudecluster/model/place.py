"""Where commands run: the values a sandbox is described with. The promises are in `ports/sandbox.py`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

SOCKET = "/run/claudecluster.sock"  # where the one socket appears inside an isolated sandbox


class Stream(StrEnum):
    """Which of the process's outputs a line came from."""

    OUT = "stdout"
    ERR = "stderr"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of output, without its newline. Over-long lines arrive whole."""

    stream: Stream
    data: bytes


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: `code` as a shell gives it (128 + n for signal n); `timed_out` if we stopped it."""

    code: int
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """What to start. `env` comes on top of the sandbox's own; `cwd` is relative to the work folder.

    `timeout` in seconds stops the whole process tree and gives `Exit(timed_out=True)`. With `stdin` false the process reads end of file at once.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "."
    stdin: bool = False
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """A copy-on-write folder: `lower` (topmost first, never written) under `upper`, seen at `at`. `work` is overlayfs' scratch."""

    lower: tuple[Path, ...]
    upper: Path
    work: Path
    at: str


@dataclass(frozen=True, slots=True)
class Bind:
    """A host file or folder seen at `at`. Missing sources are an `Unavailable` on create."""

    source: Path
    at: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What a sandbox may use. Bytes, processes, open files; None leaves a limit off.

    With `each`, memory is counted for each process alone, which costs less to set up: for programs of ours in there, not for guests.
    """

    memory: int | None = 4 * 1024**3
    processes: int | None = 512
    files: int | None = 4096
    file_size: int | None = 16 * 1024**3
    each: bool = False


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """All a back end needs to make a sandbox. `work` is the folder that paths and `cwd` are relative to.

    `home` is the agent's home inside (a Layer or Bind puts it there). `socket` is a host path, shown at `SOCKET`
    (or passed as it is by a back end that does not isolate); `network="full"` is the host's network, by name only.
    """

    name: str
    work: str
    home: str
    layers: tuple[Layer, ...] = ()
    binds: tuple[Bind, ...] = ()
    socket: Path | None = None
    network: Literal["none", "full"] = "none"
    limits: Limits = field(default_factory=Limits)
    env: Mapping[str, str] = field(default_factory=dict)
