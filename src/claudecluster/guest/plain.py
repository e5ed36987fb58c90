"""One command without a wall: a small supervisor that leaves no descendant behind. Called by `launch` in a fresh child.

As the adopter of orphans it stays the ancestor of every process the command makes, also of those that start their own session,
so that ending means: kill children until there are none.
"""

import os
import select
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from claudecluster.guest import linux
from claudecluster.guest.wire import tell

_NOT_FOUND, _NOT_RUNNABLE = 127, 126
_KILLED = 137


def run(order: Mapping[str, Any], fds: list[int], control: socket.socket, launcher: int) -> NoReturn:
    """Run the command to its end, or until the launcher asks for it with SIGTERM or ends itself; then kill what is left and exit as it did."""
    linux.adopt_orphans()
    wake, alarm = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stop.append(number))
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    linux.die_with_parent(signal.SIGTERM)
    main = _spawn(order, fds, control) if os.getppid() == launcher else 0
    for fd in fds:
        os.close(fd)
    control.close()
    code = _KILLED
    while main and not stop:
        select.select([wake], [], [])
        os.read(wake, 4096)
        ended = dict(reaped())
        if main in ended:
            code = os.waitstatus_to_exitcode(ended[main])
            break
    kill_descendants()
    os._exit(128 - code if code < 0 else code)


def reaped() -> Iterator[tuple[int, int]]:
    """Collect the children that have ended: pid and wait status."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def kill_descendants(spare: frozenset[int] = frozenset()) -> None:
    """Kill every descendant but `spare` and what they started, until none is left."""
    while True:
        found = [pid for pid in _children(os.getpid()) if pid not in spare]
        if not found:
            return
        for pid in found:
            _kill_tree(pid)
        for pid in found:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue


def _kill_tree(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGSTOP)  # a stopped process makes no more children while we look for them
        for child in _children(pid):
            _kill_tree(child)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    found: list[int] = []
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as children:
                found += [int(child) for child in children.read().split()]
        except OSError:
            continue
    return found


def _spawn(order: Mapping[str, Any], fds: list[int], control: socket.socket) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for name in ("SIGPIPE", "SIGXFSZ", "SIGINT", "SIGTERM", "SIGCHLD"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        linux.die_with_parent(signal.SIGKILL)
        for place, fd in enumerate(fds[1:4]):
            os.dup2(fd, place, inheritable=True)
        _become(order, control)
    finally:
        os._exit(_NOT_RUNNABLE)


def _become(order: Mapping[str, Any], control: socket.socket) -> NoReturn:
    tell(control, started=True)
    try:
        os.chdir(order["cwd"])
        os.execvpe(order["argv"][0], order["argv"], order["env"])  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"{order['argv'][0]}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(_NOT_FOUND if isinstance(error, FileNotFoundError | NotADirectoryError) else _NOT_RUNNABLE)
