"""The launcher: one small process per owner that starts all its sandboxes. Started by `sandboxes/launcher.py`; decides nothing about policy.

A warm process forks a start in about a millisecond; a fresh interpreter for each would cost thirty. And it is the root of one tree: isolated
launchers are process 1 of their own pid namespace, so that the kernel kills everything below, at once and without exception, when the launcher
ends; the launcher ends when its owner's end of the order socket closes, which `kill -9` of the owner does too.
"""

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from claudecluster.guest import etc, isolated, linux, plain, stage
from claudecluster.guest.wire import FAILED, FDS, Trouble, contents, receive, tell


@dataclass(slots=True)
class _Child:
    pid: int
    sandbox: str
    joinable: bool  # whether it shows the sandbox's tree for as long as it lives, and is meant to live
    uppers: frozenset[str]  # the layers it may have mounted
    control: socket.socket


class Launcher:
    """Takes orders, forks, reports ends, and kills what nobody holds any more."""

    def __init__(self, orders: socket.socket, settings: Mapping[str, Any]) -> None:
        self._orders = orders
        self._settings = settings
        self._plain = settings["mode"] == "plain"
        self._children: dict[int, _Child] = {}
        self._by_control: dict[int, _Child] = {}
        self._poll = select.poll()
        self._wake, alarm = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self._pid_namespace = -1 if self._plain else os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def serve(self) -> None:
        """Work until the owner closes its end or dies."""
        self._poll.register(self._orders.fileno(), select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        while True:
            ready = [fd for fd, _event in self._poll.poll()]
            if self._wake in ready:
                self._reap()
            for fd in self._by_control.keys() & set(ready):  # not those that have ended since they were polled
                self._abandoned(fd)
            if self._orders.fileno() in ready and not self._take():  # last, so that an order sees what was given up before it
                return

    def _take(self) -> bool:
        try:
            message, fds = receive(self._orders)
        except ConnectionError:
            return False
        if not message:
            return False
        if len(fds) != FDS:  # too many are open here; the owner sees its line close
            for fd in fds:
                os.close(fd)
            return True
        head = json.loads(message)
        # high, out of the way of the descriptors a command is given
        control = socket.socket(fileno=fcntl.fcntl(fds[-1], fcntl.F_DUPFD_CLOEXEC, 20))
        try:
            self._start(head, fds, control)
        except (OSError, Trouble) as error:
            tell(control, error=f"cannot start a process: {error}", kind="unavailable")
            tell(control, exit=FAILED)
            control.close()
        for fd in fds:
            os.close(fd)
        return True

    def _start(self, head: Mapping[str, Any], fds: list[int], control: socket.socket) -> None:
        runs = head["kind"] == "run"
        self._refuse_second_mount(head)
        neighbours = {child.pid: child.joinable for child in self._children.values() if child.sandbox == head["sandbox"]}
        launcher = os.getpid()
        if runs and not self._plain:
            linux.unshare(linux.CLONE_NEWPID)  # each command is process 1 of its own: killing it kills its whole tree, atomically
        try:
            pid = os.fork()
        except OSError:
            self._stay_here(runs=runs)
            raise
        if pid == 0:
            self._become(fds, control, neighbours, launcher)
        self._stay_here(runs=runs)
        child = _Child(pid, head["sandbox"], runs and not self._plain, frozenset(head["uppers"]), control)
        self._children[pid] = self._by_control[control.fileno()] = child
        self._poll.register(control.fileno(), select.POLLIN)

    def _refuse_second_mount(self, head: Mapping[str, Any]) -> None:
        """Raise Trouble if another sandbox has one of these layers: what two mounts of one upper folder do is undefined (kernel: overlayfs.rst)."""
        for child in self._children.values():
            shared = child.uppers.intersection(head["uppers"])
            if child.sandbox != head["sandbox"] and shared:
                raise Trouble(f"{min(shared)} is in use by sandbox {child.sandbox}")

    def _stay_here(self, *, runs: bool) -> None:
        if runs and not self._plain:
            linux.setns(self._pid_namespace, linux.CLONE_NEWPID)

    def _become(self, fds: list[int], control: socket.socket, neighbours: Mapping[int, bool], launcher: int) -> NoReturn:
        try:
            self._let_go()
            order = json.loads(contents(fds[0]))
            if self._plain:
                tell(control, pid=os.getpid())
                plain.run(order, fds, control, launcher)
            tell(control, pid=int(os.readlink(f"{stage.HOST}/proc/self")))
            if order["kind"] == "run":
                isolated.run(self._settings, order, fds, neighbours)
            isolated.touch(self._settings, order, fds, neighbours)
            os._exit(0)
        except Trouble as trouble:
            tell(control, error=str(trouble), kind=trouble.kind)
        except Exception as error:  # noqa: BLE001 - this child is about to end; its owner must hear why
            tell(control, error=f"{type(error).__name__}: {error}", kind="unavailable")
        finally:
            os._exit(FAILED)

    def _let_go(self) -> None:
        """Close what belongs to the launcher and to other commands, so that their ends are seen at once."""
        signal.set_wakeup_fd(-1)
        self._orders.close()
        for child in self._children.values():
            child.control.close()

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        for pid, status in plain.reaped():
            child = self._children.pop(pid, None)
            if child is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            tell(child.control, exit=128 - code if code < 0 else code)
            if self._by_control.pop(child.control.fileno(), None):
                self._poll.unregister(child.control.fileno())
            child.control.close()
        if self._plain:  # what a supervisor that was killed left to us
            plain.kill_descendants(spare=frozenset(self._children))

    def _abandoned(self, fd: int) -> None:
        self._poll.unregister(fd)
        child = self._by_control.pop(fd)
        child.joinable = False
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGTERM if self._plain else signal.SIGKILL)


def _isolate(settings: Mapping[str, Any]) -> None:
    """Fork into a new pid namespace whose process 1 builds the private root and returns; the parent waits for it and exits."""
    uid, gid = os.getuid(), os.getgid()
    if settings["drop"]:
        linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWPID)
    else:
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS | linux.CLONE_NEWPID)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    pid = os.fork()
    if pid:
        os.closerange(3, 256)  # the child alone holds the order socket
        os.waitpid(pid, 0)
        os._exit(0)
    stage.enter_private_root()
    stage.prepare_parts(settings["parts"])
    etc.prepare(settings["etc"])


def main(fd: int) -> None:
    """Serve the owner at the other end of socket `fd`. The first message brings the settings."""
    orders = socket.socket(fileno=fd)
    orders.set_inheritable(False)
    _message, fds = receive(orders)
    if not fds:
        return
    settings = json.loads(contents(fds[0]))
    os.close(fds[0])
    try:
        if settings["mode"] == "plain":
            linux.adopt_orphans()
        else:
            _isolate(settings)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # one descriptor stands for each command that runs
        launcher = Launcher(orders, settings)
    except OSError as error:
        orders.send(json.dumps({"error": f"{error.filename or 'launcher'}: {error.strerror}"}).encode())
        return
    orders.send(json.dumps({"ready": True}).encode())
    launcher.serve()
    if settings["mode"] == "plain":
        plain.kill_descendants()


if __name__ == "__main__":
    main(int(sys.argv[1]))
