"""Turns a sandbox's description into the launcher's words: what to mount where, which limits, which environment. Called by `process`."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from claudecluster.model.errors import Refused
from claudecluster.model.place import SOCKET, Bind, Command, Layer, Limits, SandboxSpec
from claudecluster.sandboxes.local import system
from claudecluster.sandboxes.local.paths import inside
from claudecluster.sandboxes.local.system import Part
from claudecluster.sandboxes.local.toolchains import Toolchains, interpreter_of

_TMP_SIZE = 8 * 1024**3
_RESERVED = ("/", "/dev", "/proc", "/sys", "/etc", "/run", "/tmp", *system.SYSTEM_FOLDERS)  # noqa: S108 - the guest's own


def refuse_nonsense(spec: SandboxSpec) -> None:
    """Raise Refused if the pieces of a description cannot make a sandbox."""
    for at in (spec.work, spec.home, *_places(spec)):
        if not at.startswith("/") or os.path.normpath(at) != at or at in _RESERVED or at.startswith(("/proc/", "/dev/", "/sys/")):
            raise Refused(f"{at!r} is not a place in a sandbox: it must be a plain absolute path outside the system's own folders")
    if not covered(spec, spec.work):
        raise Refused(f"nothing is shown at {spec.work}, the work folder of sandbox {spec.name}")


def covered(spec: SandboxSpec, at: str) -> bool:
    """Tell whether a layer or bind shows something at a path."""
    return any(Path(at).is_relative_to(place) for place in _places(spec))


def _places(spec: SandboxSpec) -> list[str]:
    return [layer.at for layer in spec.layers] + [bind.at for bind in spec.binds]


def sources(spec: SandboxSpec) -> Iterator[Path]:
    """Yield every host path the sandbox is made of."""
    for layer in spec.layers:
        yield from (*layer.lower, layer.upper, layer.work)
    for bind in spec.binds:
        yield bind.source
    if spec.socket:
        yield spec.socket


def venv_interpreters(spec: SandboxSpec, home: Path) -> tuple[Part, ...]:
    """Return the Python installation that a virtual environment in the work folder was made from, judged by what the guest cannot write."""
    venv = Path(spec.work) / ".venv"
    found: list[Part] = []
    for at, folders in _readable_from_here(spec):
        if venv.is_relative_to(at):
            for folder in folders:
                found += interpreter_of(folder / venv.relative_to(at), home)
    return tuple(dict.fromkeys(found))


def _readable_from_here(spec: SandboxSpec) -> Iterator[tuple[str, Sequence[Path]]]:
    for layer in spec.layers:
        yield layer.at, layer.lower
    for bind in spec.binds:
        yield bind.at, (bind.source,)


def tree(spec: SandboxSpec, parts: Sequence[Part], extra: Sequence[Bind]) -> dict[str, Any]:
    """Say what is mounted. `parts` are the launcher's own, by number; those inside the work folder give way to the workspace."""
    binds = [*spec.binds, *extra]
    if spec.socket:
        binds.append(Bind(spec.socket, SOCKET))
    if spec.network == "full":
        binds += [Bind(Path("/etc") / name, f"/etc/{name}") for name in ("resolv.conf", "hosts") if (Path("/etc") / name).exists()]
    return {
        "links": system.links(),
        "folders": system.FOLDERS,
        "temporary": system.TEMPORARY,
        "tmp_size": min(_TMP_SIZE, spec.limits.memory or _TMP_SIZE),
        "parts": [number for number, part in enumerate(parts) if not Path(part.at).is_relative_to(spec.work)],
        "layers": [_layer(layer) for layer in spec.layers],
        "binds": [{"source": str(bind.source.resolve()), "at": bind.at, "writable": bind.writable} for bind in binds],
    }


def _layer(layer: Layer) -> dict[str, Any]:
    lower = [str(folder.resolve()) for folder in layer.lower]
    return {"lower": lower, "upper": str(layer.upper.resolve()), "work": str(layer.work.resolve()), "at": layer.at}


def refuse_nonsense_command(spec: SandboxSpec, wanted: Command) -> None:
    """Raise Refused for a command no system can start."""
    own = {**spec.env, **wanted.env}
    if not wanted.argv or not wanted.argv[0]:
        raise Refused("a command needs a program")
    if any("\0" in text for text in (*wanted.argv, *own, *own.values())) or any("=" in name or not name for name in own):
        raise Refused("no text of a command may hold a zero byte, and no variable's name an equals sign")


def command(spec: SandboxSpec, wanted: Command, tools: Toolchains) -> dict[str, Any]:
    """Say what is run and in which environment. Raises Refused for a working folder outside the sandbox's own, or nonsense in arguments."""
    refuse_nonsense_command(spec, wanted)
    own = {**spec.env, **wanted.env}
    env = {
        "PATH": ":".join([f"{spec.home}/.local/bin", *tools.path]),
        "HOME": spec.home,
        "USER": "agent",
        "LOGNAME": "agent",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "TMPDIR": "/tmp",  # noqa: S108 - the guest's own
        "IS_SANDBOX": "1",
        **tools.env,
        **own,
    }
    return {
        "argv": wanted.argv,
        "cwd": inside(wanted.cwd, spec.work, spec.home),
        "work": spec.work,
        "env": env,
        "path_first": [] if "PATH" in own else [f"{spec.work}/.venv/bin", f"{spec.work}/node_modules/.bin"],
        "network": spec.network == "full",
    }


def rlimits(limits: Limits, *, memory_held: bool, processes_held: bool, uid: int) -> dict[str, int]:
    """Say which limits the kernel keeps per process; memory and number of processes only where no control group holds them.

    The kernel counts a user's processes over all its sandboxes and, for an ordinary user, everything else of theirs, so that what runs already is added.
    """
    found = {"CORE": 0}
    if limits.files is not None:
        found["NOFILE"] = limits.files
    if limits.file_size is not None:
        found["FSIZE"] = limits.file_size
    if limits.memory is not None and not memory_held:
        found["DATA"] = limits.memory
    if limits.processes is not None and not processes_held:
        found["NPROC"] = limits.processes + tasks_of(uid)
    return found


def tasks_of(uid: int) -> int:
    """Count the threads of a user on this machine."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.stat().st_uid == uid:
                count += sum(1 for _ in (process / "task").iterdir())
    return count
