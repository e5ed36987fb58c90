"""One order inside the wall: build its tree, give up all power, become bubblewrap (or read or write one file). Called by `launch` in a fresh child.

Bubblewrap makes the inner namespaces and drops capabilities; what it cannot do in release 0.8 (overlays, sources under folders
the guest may not enter, joining a tree that is in use) is done here first. Ends in exec or in Trouble.
"""

import errno
import fcntl
import os
import resource
import signal
import time
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from claudecluster.guest import files, linux, stage
from claudecluster.guest.wire import STARTED, Trouble, anonymous

_PATIENCE = 10.0  # seconds
_CONTROL, _ARGS, _SECCOMP = 3, 4, 5
# The first line tells the owner that the sandbox stands; the guest's program never sees that descriptor.
_SHELL = f'echo \'{STARTED}\' >&3; exec 3>&-; cd -- "$1" || exit 126; unset OLDPWD; shift; exec "$@"'


def run(
    settings: Mapping[str, Any], order: Mapping[str, Any], fds: list[int], neighbours: Mapping[int, bool], *, joined: bool = False
) -> NoReturn:
    """Become the command of `order`. `neighbours` are processes of the same sandbox, and whether their tree may be shared.

    `joined` says that this process is in the control groups already.
    """
    _enter(settings, order, neighbours, joined=joined)
    arguments = _bubblewrap_options(order)
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in fds[1:]]
    high += [fcntl.fcntl(anonymous(data), fcntl.F_DUPFD_CLOEXEC, 20) for data in (arguments, bytes.fromhex(settings["seccomp"]))]
    _drop(settings)
    for place, fd in enumerate(high):
        os.dup2(fd, place, inheritable=True)
    for name in ("SIGPIPE", "SIGXFSZ", "SIGINT"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    inside = ["/bin/sh", "-c", _SHELL, "sh", order["cwd"], *order["argv"]]
    try:
        os.execve(settings["bwrap"], ["bwrap", "--args", str(_ARGS), "--", *inside], {"LANG": "C.UTF-8"})  # noqa: S606 - no shell is wanted
    except OSError as error:
        kind = "refused" if error.errno == errno.E2BIG else "unavailable"
        raise Trouble(f"cannot start bubblewrap: {error.strerror}", kind) from error


def touch(settings: Mapping[str, Any], order: Mapping[str, Any], fds: list[int], neighbours: Mapping[int, bool]) -> None:
    """Read or write the file of `order`, seen as the guest sees it."""
    _enter(settings, order, neighbours)
    os.chroot(stage.STAGE)
    os.chdir("/")
    _drop(settings)
    if order["kind"] == "read":
        files.copy_out(order["path"], order["roots"], fds[2])
    else:
        os.umask(0o022)
        files.copy_in(order["path"], order["roots"], fds[1])


def _enter(settings: Mapping[str, Any], order: Mapping[str, Any], neighbours: Mapping[int, bool], *, joined: bool = False) -> None:
    for folder, values in order["cgroups"].items():
        limit(folder, values)
        if not joined:
            join(folder)
    shared = any(_join_tree(pid) for pid, joinable in neighbours.items() if joinable)
    if not shared:
        _wait_for_end(neighbours)
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("proc", "/proc", "proc")  # bubblewrap looks itself up by the numbers of its own pid namespace
    if not shared:
        stage.build(settings["parts"], order, (settings["uid"], settings["gid"]), overlay_options=settings["overlay_options"])
    for name, value in order["rlimits"].items():
        _limit(getattr(resource, f"RLIMIT_{name}"), value)
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("500")  # when memory runs out, a guest goes before its host


def _join_tree(pid: int) -> bool:
    """Enter another command's mount namespace; false if it is just ending."""
    try:
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    linux.setns(fd, linux.CLONE_NEWNS)
    os.close(fd)
    return True


def _wait_for_end(pids: Iterable[int]) -> None:
    """Wait until these are gone with their descendants and mounts; a layer must not be mounted twice."""
    deadline = time.monotonic() + _PATIENCE
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        if time.monotonic() > deadline:
            raise Trouble("what ran before in this sandbox does not end")
        time.sleep(0.001)


def limit(folder: str, values: Mapping[str, int]) -> None:
    """Make a control group, unless it is there, and set its limits. Raises Trouble."""
    try:
        os.makedirs(stage.HOST + folder, exist_ok=True)
        for file, value in values.items():
            with open(f"{stage.HOST}{folder}/{file}", "w", encoding="ascii") as setting:
                setting.write(str(value))
    except OSError as error:
        raise Trouble(f"cannot make the control group {folder}: {error.strerror}") from error


def join(folder: str) -> None:
    """Enter a control group. Raises Trouble."""
    try:
        with open(f"{stage.HOST}{folder}/cgroup.procs", "w", encoding="ascii") as procs:
            procs.write("0")
    except OSError as error:
        raise Trouble(f"cannot enter the control group {folder}: {error.strerror}") from error


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (allowed, allowed))


def _drop(settings: Mapping[str, Any]) -> None:
    os.umask(0o022)
    if settings["drop"]:
        os.setgroups([])
        os.setresgid(settings["gid"], settings["gid"], settings["gid"])
        os.setresuid(settings["uid"], settings["uid"], settings["uid"])


def _bubblewrap_options(order: Mapping[str, Any]) -> bytes:
    options = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if not order["network"]:
        options.append("--unshare-net")
    options += ["--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    options += ["--bind", stage.STAGE, "/", "--proc", "/proc", "--dev", "/dev"]
    options += ["--chdir", "/", "--clearenv"]
    for name, value in _environment(order).items():
        options += ["--setenv", name, value]
    options += ["--seccomp", str(_SECCOMP)]
    return b"".join(os.fsencode(option) + b"\0" for option in options)


def _environment(order: Mapping[str, Any]) -> dict[str, str]:
    environment = dict(order["env"])
    first = [folder for folder in order["path_first"] if os.path.isdir(stage.STAGE + folder)]
    if first:
        environment["PATH"] = ":".join([*first, environment["PATH"]])
    venv = f"{order['work']}/.venv"
    if f"{venv}/bin" in first:
        environment.setdefault("VIRTUAL_ENV", venv)
    return environment
