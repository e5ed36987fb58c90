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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from claudecluster.guest import etc, isolated, linux, plain, stage
from claudecluster.guest.wire import FAILED, FDS, SPARE, Trouble, contents, receive, tell

_SPARE_AFTER = 3  # milliseconds without an order after which there is time to prepare for the next one


@dataclass(slots=True)
class _Child:
    pid: int
    sandbox: str
    joinable: bool  # whether it shows the sandbox's tree for as long as it lives, and is meant to live
    uppers: frozenset[str]  # the layers it may have mounted
    control: socket.socket


@dataclass(slots=True)
class _Spare:
    """A child that is in control groups of its own already and waits for its order: entering them takes the kernel some 10 ms."""

    pid: int
    line: socket.socket
    groups: list[str]


class Launcher:
    """Takes orders, forks, reports ends, and kills what nobody holds any more."""

    def __init__(self, orders: socket.socket, settings: Mapping[str, Any]) -> None:
        self._orders = orders
        self._settings = settings
        self._plain = settings["mode"] == "plain"
        self._children: dict[int, _Child] = {}
        self._by_control: dict[int, _Child] = {}
        self._spare: _Spare | None = None
        self._spares = 0  # so many were made
        self._grouped = False  # whether anything was started in control groups: a trial needs no spare
        self._spare_bases: list[str] = settings.get("spares", [])
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
            wanted = self._grouped and self._spare_bases and self._spare is None
            ready = [fd for fd, _event in self._poll.poll(_SPARE_AFTER if wanted else None)]
            if not ready:
                self._prepare_spare()
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
        self._grouped = self._grouped or bool(head["groups"])
        neighbours = {child.pid: child.joinable for child in self._children.values() if child.sandbox == head["sandbox"]}
        launcher = os.getpid()
        pid = self._hand_over(head, fds) if runs and not neighbours else 0
        if not pid:
            pid = self._forked(runs=runs)
            if pid == 0:
                self._let_go()
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

    def _forked(self, *, runs: bool) -> int:
        """Fork, into a pid namespace of its own what runs: killing it then kills its whole tree, atomically. The parent has to `_stay_here`."""
        if runs and not self._plain:
            linux.unshare(linux.CLONE_NEWPID)
        try:
            return os.fork()
        except OSError:
            self._stay_here(runs=runs)
            raise

    def _prepare_spare(self) -> None:
        """Fork a child that enters new control groups and waits there for an order."""
        self._spares += 1
        name = f"{SPARE}{os.readlink(f'{stage.HOST}/proc/self')}-{self._spares}"
        groups = [f"{base}/{name}" for base in self._spare_bases]
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            self._spare_bases = []  # descriptors are short: what runs needs them
            return
        try:
            pid = self._forked(runs=True)
        except OSError:
            self._spare_bases = []  # processes are short: do not ask again every few milliseconds
            ours.close()
            theirs.close()
            return
        if pid == 0:
            ours.close()
            self._let_go()
            self._await_order(theirs, groups)
        self._stay_here(runs=True)
        theirs.close()
        self._spare = _Spare(pid, ours, groups)

    def _await_order(self, line: socket.socket, groups: Sequence[str]) -> NoReturn:
        try:
            for group in groups:
                isolated.limit(group, {})
                isolated.join(group)
            line.send(b"ready")
            _message, fds = receive(line)
            if len(fds) == FDS:
                line.close()
                control = socket.socket(fileno=fcntl.fcntl(fds[-1], fcntl.F_DUPFD_CLOEXEC, 20))
                self._become(fds, control, {}, 0, joined=True)
        finally:
            os._exit(FAILED)

    def _hand_over(self, head: Mapping[str, Any], fds: list[int]) -> int:
        """Give an order to the spare child and its control groups to the sandbox. Returns its pid, 0 if that cannot be."""
        spare, wanted = self._spare, [stage.HOST + group for group in head["groups"]]
        if spare is None or len(wanted) != len(spare.groups) or any(os.path.exists(group) for group in wanted):
            return 0
        try:
            if spare.line.recv(16, socket.MSG_DONTWAIT) != b"ready":
                self.drop_spare()  # it could not enter its groups
                return 0
            for own, group in zip(spare.groups, wanted, strict=True):
                os.rename(stage.HOST + own, group)
            socket.send_fds(spare.line, [b"go"], fds, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0  # it is still on its way
        except OSError:
            self.drop_spare()
            self._spare_bases = []
            return 0
        spare.line.close()
        self._spare = None
        return spare.pid

    def drop_spare(self) -> None:
        """End the spare child and remove its control groups."""
        if self._spare is None:
            return
        self._spare.line.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._spare.pid, 0)
        for group in self._spare.groups:
            with contextlib.suppress(OSError):
                os.rmdir(stage.HOST + group)
        self._spare = None

    def _stay_here(self, *, runs: bool) -> None:
        if runs and not self._plain:
            linux.setns(self._pid_namespace, linux.CLONE_NEWPID)

    def _become(
        self, fds: list[int], control: socket.socket, neighbours: Mapping[int, bool], launcher: int, *, joined: bool = False
    ) -> NoReturn:
        try:
            order = json.loads(contents(fds[0]))
            if self._plain:
                tell(control, pid=os.getpid())
                plain.run(order, fds, control, launcher)
            tell(control, pid=int(os.readlink(f"{stage.HOST}/proc/self")))
            if order["kind"] == "run":
                isolated.run(self._settings, order, fds, neighbours, joined=joined)
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
        if self._spare is not None:
            self._spare.line.close()
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
    launcher.drop_spare()
    if settings["mode"] == "plain":
        plain.kill_descendants()


if __name__ == "__main__":
    main(int(sys.argv[1]))
