"""What a guest of the default back end sees, reaches and may use, tried from inside."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from claudecluster.guest.wire import SPARE
from claudecluster.kit import processes
from claudecluster.model.errors import Refused, Unavailable
from claudecluster.model.place import SOCKET, Bind, Command, Limits, SandboxSpec
from claudecluster.sandboxes.process import ProcessSandboxes
from claudecluster.testing.contracts.ground import Done, local_spec, run


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessSandboxes]:
    made = ProcessSandboxes(tmp_path_factory.mktemp("state"), os.environ["PATH"])
    yield made
    made.close()


@pytest.fixture
async def provider(shared: ProcessSandboxes) -> AsyncIterator[ProcessSandboxes]:
    try:
        await shared.check()
    except Unavailable as error:
        pytest.skip(f"{error.message}; {error.hint}")
    yield shared
    for name in await shared.names(""):
        await shared.destroy(name)


@pytest.fixture
def spec(provider: ProcessSandboxes, tmp_path: Path) -> SandboxSpec:
    return local_spec(provider, tmp_path, "guest")


async def inside(provider: ProcessSandboxes, spec: SandboxSpec, script: str) -> Done:
    return await run(await provider.create(spec), "sh", "-c", script)


async def python(provider: ProcessSandboxes, spec: SandboxSpec, script: str) -> list[str]:
    done = await run(await provider.create(spec), "python3", "-c", script)
    assert done.exit.code == 0, done
    return b"\n".join(done.out).decode().splitlines()


async def test_a_guest_sees_nothing_of_the_host_but_its_system(provider: ProcessSandboxes, spec: SandboxSpec, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    looked_for = [
        str(tmp_path),
        str(secret),
        "/etc/shadow",
        "/etc/ssh",
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/host",
        "/stage",
        "/sys",
        "/boot",
    ]
    looked_for += [
        str(Path.home() / name)
        for name in (".ssh", ".claude", ".config", ".npmrc", ".gitconfig", ".cache", ".cargo/credentials.toml", ".netrc")
    ]
    done = await inside(provider, spec, "; ".join(f"ls -d {path}" for path in looked_for))
    assert done.out == []
    listed = (await inside(provider, spec, "ls -A /; echo --; ls -A /home /run /mnt /tmp; echo --; cat /etc/passwd")).out
    tops = {line.decode() for line in listed[: listed.index(b"--")]}
    assert tops <= {
        "bin",
        "dev",
        "etc",
        "home",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "mnt",
        "nix",
        "opt",
        "proc",
        "repo",
        "root",
        "run",
        "sbin",
        "tmp",
        "usr",
        "var",
    } | {Path(part.at).parts[1] for part in provider.view().tools.parts}
    assert [line for line in listed if line.startswith(b"agent:")] == [b"agent:x:1000:1000:agent:/home/agent:/bin/bash"]


async def test_a_guest_sees_only_its_own_processes(provider: ProcessSandboxes, spec: SandboxSpec) -> None:
    done = await inside(provider, spec, f"ls /proc | grep -c '^[0-9]'; kill -0 {os.getpid()} && echo reached")
    assert int(done.out[0]) < 8
    assert len(done.out) == 1


async def test_a_guest_is_nobody_in_and_out(provider: ProcessSandboxes, spec: SandboxSpec) -> None:
    place = await provider.create(spec)
    async with place.start(Command(("sh", "-c", "echo $(id -u); exec sleep 600"))) as process:  # `id` is gone when its number is said
        assert (await anext(process.lines())).data == b"1000"
        users = {status_of(pid)["Uid"] for pid in tree_of(process.pid)}  # type: ignore[attr-defined] - ours tells
        powers = {status_of(pid)["CapEff"] for pid in tree_of(process.pid)}  # type: ignore[attr-defined] - the same
    expected = provider.owner[0] if provider.owner else os.getuid()
    assert users == {"\t".join([str(expected)] * 4)}
    assert expected != 0
    assert powers == {"0" * 16}


def tree_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in tree_of(int(child)))]


def status_of(pid: int) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):\t(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))


async def test_a_guest_is_handed_nothing_but_its_three_streams(provider: ProcessSandboxes, spec: SandboxSpec) -> None:
    done = await inside(provider, spec, "for fd in $(seq 0 255); do [ -e /proc/$$/fd/$fd ] && echo $fd; done")
    assert done.out[:3] == [b"0", b"1", b"2"]
    assert set(done.out[3:]) <= {b"10"}  # where a shell keeps its script; it was not handed over


async def test_a_guest_reaches_no_network_but_its_socket(provider: ProcessSandboxes, spec: SandboxSpec, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0claudecluster-test-{os.getpid()}")
        abstract.listen()
        door = stack.enter_context(socket.socket(socket.AF_UNIX))
        door.bind(str(tmp_path / "door"))
        door.listen()
        names = (
            f"(socket.AF_INET, ('127.0.0.1', {tcp.getsockname()[1]})), (socket.AF_INET, ('192.0.2.1', 80)), "
            f"(socket.AF_INET6, ('::1', {tcp.getsockname()[1]})), (socket.AF_UNIX, '\\0claudecluster-test-{os.getpid()}'), (socket.AF_UNIX, '{SOCKET}')"
        )
        script = f"""
import socket
for family, address in ({names}):
    try:
        with socket.socket(family) as s:
            s.settimeout(5)
            s.connect(address)
        print("reached")
    except OSError as error:
        print("no")
print(*(name for _, name in socket.if_nameindex()))
try:
    socket.socket(socket.AF_VSOCK)
    print("vsock")
except OSError:
    print("no")
"""
        place = await provider.create(replace(spec, socket=tmp_path / "door"))
        assert place.socket == SOCKET
        said = await python(provider, replace(spec, socket=tmp_path / "door"), script)
    assert said == ["no", "no", "no", "no", "reached", "lo", "no"]


async def test_the_hosts_network_is_there_when_asked_for_by_name(provider: ProcessSandboxes, spec: SandboxSpec) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        script = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5); print('reached')"
        assert await python(provider, replace(spec, network="full"), script) == ["reached"]


FORBIDDEN = {
    "mount": [165, 40],
    "umount2": [166, 39],
    "unshare": [272, 97],
    "setns": [308, 268],
    "pivot_root": [155, 41],
    "chroot": [161, 51],
    "keyctl": [250, 219],
    "add_key": [248, 217],
    "request_key": [249, 218],
    "bpf": [321, 280],
    "perf_event_open": [298, 241],
    "kexec_load": [246, 104],
    "init_module": [175, 105],
    "swapon": [167, 224],
    "reboot": [169, 142],
    "open_by_handle_at": [304, 265],
    "userfaultfd": [323, 282],
    "fsopen": [430, 430],
    "move_mount": [429, 429],
}


async def test_a_guest_may_not_touch_the_kernel(provider: ProcessSandboxes, spec: SandboxSpec) -> None:
    script = f"""
import ctypes, errno, json, os
libc = ctypes.CDLL(None, use_errno=True)
column = 0 if os.uname().machine == "x86_64" else 1
said = {{}}
def call(name, *arguments):
    ctypes.set_errno(0)
    libc.syscall(*[ctypes.c_long(a) for a in arguments])
    said[name] = errno.errorcode.get(ctypes.get_errno(), "done")
for name, numbers in {FORBIDDEN!r}.items():
    call(name, numbers[column], 0, 0, 0, 0, 0)
call("clone newuser", (56, 220)[column], 0x10000000 | 17, 0, 0, 0, 0)
call("clone3", 435, 0, 0)
call("io_uring_setup", 425, 8, 0)
call("tiocsti", (16, 29)[column], 0, 0x5412, 0)
call("tiocsti, disguised", (16, 29)[column], 0, 0x500005412, 0)
print(json.dumps(said))
"""
    said = json.loads((await python(provider, spec, script))[0])
    absent = {"clone3": "ENOSYS", "io_uring_setup": "ENOSYS"}
    assert said == {name: absent.get(name, "EPERM") for name in said}
    assert len(said) == len(FORBIDDEN) + 5


async def test_a_guest_may_not_undo_its_walls(provider: ProcessSandboxes, spec: SandboxSpec) -> None:
    script = "unshare -Ur true && echo a; unshare -m true && echo b; mount -t tmpfs x /mnt && echo c; mount -o remount,rw /usr && echo d; umount /etc && echo e; su -c true && echo f; exit 0"
    assert (await inside(provider, spec, script)).out == []
    status = (await inside(provider, spec, "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status")).out
    assert status == [b"NoNewPrivs:\t1", b"Seccomp:\t2"]


async def test_a_guest_writes_only_into_its_own_folders(provider: ProcessSandboxes, spec: SandboxSpec) -> None:
    places = [
        "/",
        "/usr",
        "/usr/bin",
        "/etc",
        "/bin",
        "/opt",
        "/run",
        "/home",
        "/mnt",
        "/var/lib",
        "/proc/sys/kernel",
        "/dev/shm/..",
        "/root",
    ]
    places += sorted({part.at for part in provider.view().tools.parts})
    attempts = "; ".join(f"(echo x > {place}/written) 2>/dev/null && echo {place}" for place in places)
    done = await inside(provider, spec, f"{attempts}; for d in . $HOME /tmp /var/tmp /dev/shm; do echo x > $d/written || echo no $d; done")
    assert [line for line in done.out if line != b"/dev/shm/.."] == []


async def test_the_base_is_never_changed(provider: ProcessSandboxes, spec: SandboxSpec) -> None:
    base = spec.layers[0].lower[0]
    (base / "old").write_text("old")
    (base / "gone").write_text("gone")
    for path in base.iterdir():
        path.chmod(0o666)
    done = await inside(provider, spec, "echo new > old && rm gone && echo x > added && cat old && ls")
    assert done.out == [b"new", b"added", b"old"]
    assert {path.name: path.read_text() for path in base.iterdir()} == {"old": "old", "gone": "gone"}


async def test_the_workspace_is_at_its_own_path_and_its_parents_are_empty(provider: ProcessSandboxes, spec: SandboxSpec) -> None:
    layer = replace(spec.layers[0], at="/root/projects/deep/x")
    moved = replace(spec, work=layer.at, layers=(layer,))
    done = await inside(provider, moved, "pwd; ls /root/projects /root/projects/deep")
    assert done.out == [b"/root/projects/deep/x", b"/root/projects:", b"deep", b"", b"/root/projects/deep:", b"x"]


@pytest.mark.parametrize("at", ["/tmp/deep/x", "/var/tmp/x", "/run/user/x", "/mnt/x", "/home/ada/x", "/workspace"])
async def test_a_workspace_may_lie_in_most_places(provider: ProcessSandboxes, spec: SandboxSpec, at: str) -> None:
    layer = replace(spec.layers[0], at=at)
    place = await provider.create(replace(spec, work=at, layers=(layer,)))
    await place.write("x", b"1")
    assert (await run(place, "sh", "-c", "pwd; cat x; echo 2 > x; touch /tmp/y")).out == [at.encode(), b"1"]
    assert await place.read("x") == b"2\n"


async def test_one_upper_folder_is_never_mounted_twice(provider: ProcessSandboxes, spec: SandboxSpec) -> None:
    one, two = await provider.create(spec), await provider.create(replace(spec, name="other"))
    async with one.start(Command(("sleep", "600"))):
        with pytest.raises(Unavailable, match="in use by sandbox guest"):
            await run(two, "true")
        with pytest.raises(Unavailable, match="in use by sandbox guest"):
            await two.read("x")
    assert (await run(two, "true")).exit.code == 0


async def test_many_reads_writes_and_starts_may_meet(provider: ProcessSandboxes, spec: SandboxSpec) -> None:
    place = await provider.create(spec)

    async def work(number: int) -> bytes:
        await place.write(f"d/{number}", b"%d" % number)
        assert (await run(place, "sh", "-c", f"echo more >> d/{number}")).exit.code == 0
        return await place.read(f"d/{number}")

    assert await asyncio.gather(*map(work, range(12))) == [b"%dmore\n" % number for number in range(12)]
    assert sorted((await run(place, "ls", "d")).out) == sorted(b"%d" % number for number in range(12))


async def test_pieces_may_lie_inside_each_other(provider: ProcessSandboxes, spec: SandboxSpec, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "x").write_text("shared")
    inner = Bind(shared, "/repo/node_modules")
    file = Bind(shared / "x", "/repo/conf/x.txt")
    done = await inside(provider, replace(spec, binds=(file, inner, *spec.binds)), "cat node_modules/x conf/x.txt; echo y > node_modules/y")
    assert done.out == [b"sharedshared"]
    assert done.exit.code != 0
    assert not (shared / "y").exists()


async def test_a_hostile_link_cannot_move_a_mount(provider: ProcessSandboxes, spec: SandboxSpec, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    assert (await inside(provider, spec, f"ln -s {target} trap; ln -s /etc etc")).exit.code == 0
    for at in ("/repo/trap/made", "/repo/etc/made", "/repo/trap"):
        with pytest.raises(Unavailable, match="cannot mount"):
            await inside(provider, replace(spec, binds=(*spec.binds, Bind(target, at))), "true")
    assert list(target.iterdir()) == []
    assert (await inside(provider, spec, "ls")).out == [b"etc", b"trap"]


@pytest.mark.parametrize("at", ["/", "/etc", "/usr", "/proc/x", "relative", "/a/../b", "/tmp"])
async def test_places_that_make_no_sense_are_refused(provider: ProcessSandboxes, spec: SandboxSpec, tmp_path: Path, at: str) -> None:
    with pytest.raises(Refused):
        await provider.create(replace(spec, binds=(*spec.binds, Bind(tmp_path, at))))


async def test_too_many_processes_are_stopped(provider: ProcessSandboxes, spec: SandboxSpec) -> None:
    if not provider.view().groups.holds("pids"):
        pytest.skip("no control group for processes may be made here")
    script = """
import os, time
count = 0
try:
    while count < 500:
        if os.fork() == 0:
            time.sleep(600)
        count += 1
except BlockingIOError:
    print(count)
"""
    said = await python(provider, replace(spec, limits=Limits(processes=40)), script)
    assert 0 < int(said[0]) < 40


async def test_who_starts_in_groups_made_beforehand_is_held_by_its_own_limits_and_leaves_nothing(tmp_path: Path) -> None:
    provider = ProcessSandboxes(tmp_path / "state", os.environ["PATH"])
    try:
        await provider.check()
        bases = [Path(base) for base in provider.view().groups.spares()]
    except Unavailable as error:
        pytest.skip(f"{error.message}; {error.hint}")
    if not bases:
        pytest.skip("no control groups that can be renamed may be made here")
    first = local_spec(provider, tmp_path / "one", "first")
    await run(await provider.create(first), "true")
    outer = provider.launcher._live.process.pid
    launcher = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0]
    for _ in range(1000):
        if spare := [path for base in bases for path in base.glob(f"{SPARE}{launcher}-*")]:
            break
        await asyncio.sleep(0.01)
    assert spare
    await asyncio.sleep(0.2)
    second = replace(local_spec(provider, tmp_path / "two", "second"), limits=Limits(processes=40, memory=96 * 1024**2))
    groups = provider.view().groups.folders("second")
    script = "cat /proc/self/cgroup; for n in $(seq 60); do sleep 30 & done; echo all of them"
    done = await run(await provider.create(second), "sh", "-c", script)
    assert b"all of them" not in done.out
    assert all((group / "cgroup.procs").exists() for group in groups)
    assert not any(path.exists() for path in spare), "the spare groups are the sandbox's now"
    much = await run(await provider.create(second), "python3", "-c", "x = bytearray(400 * 1024 ** 2); print('got it')")
    assert much.out == []
    for name in ("first", "second"):
        await provider.destroy(name)
    provider.close()
    assert not any(group.exists() for group in groups)
    assert [path for base in bases for path in base.glob(f"{SPARE}{launcher}-*")] == []


async def test_too_much_memory_is_stopped(provider: ProcessSandboxes, spec: SandboxSpec) -> None:
    place = await provider.create(replace(spec, limits=Limits(memory=96 * 1024**2)))
    done = await run(place, "python3", "-c", "x = bytearray(400 * 1024 ** 2); print('got it')")
    assert done.out == []
    assert done.exit.code in {1, 137}
    files = await run(place, "sh", "-c", "head -c 300000000 /dev/zero > /tmp/x && echo got it")
    assert files.out == []
    assert (await run(place, "true")).exit.code == 0


async def test_files_and_their_sizes_are_limited(provider: ProcessSandboxes, spec: SandboxSpec) -> None:
    limited = replace(spec, limits=Limits(files=64, file_size=1_000_000))
    done = await inside(provider, limited, "ulimit -n; ulimit -c; head -c 2000000 /dev/zero > big; wc -c < big")
    assert done.out == [b"64", b"0", b"1000000"]


@pytest.mark.parametrize("tool", ["git", "python3", "pytest", "node", "npm", "cargo", "uv"])
async def test_the_tools_on_the_path_work(provider: ProcessSandboxes, spec: SandboxSpec, tool: str) -> None:
    outside = await processes.run([tool, "--version"]) if shutil.which(tool) else None
    if outside is None or outside.code:
        pytest.skip(f"{tool} does not work here")
    done = await inside(provider, spec, f"{tool} --version")
    assert (done.exit.code, b"\n".join(done.out)) == (0, outside.out.strip())


async def test_git_and_pytest_do_real_work(provider: ProcessSandboxes, spec: SandboxSpec) -> None:
    script = """
set -e
git init -q . && git config user.email a@b && git config user.name a
printf 'def test_one(tmp_path): assert tmp_path.exists()\\n' > test_it.py
git add . && git commit -qm one && git status --porcelain && git log --format=%s
"""
    assert (await inside(provider, spec, script)).out == [b"one"]


async def test_an_environment_in_the_workspace_is_used(tmp_path: Path) -> None:
    provider = ProcessSandboxes(tmp_path / "state", "/usr/bin:/bin")  # its interpreter is not on the PATH
    spec = local_spec(provider, tmp_path, "guest")
    base = spec.layers[0].lower[0]
    interpreter = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert (await processes.run([str(interpreter), "-m", "venv", "--without-pip", "--symlinks", str(base / ".venv")])).code == 0
    try:
        said = await python(provider, spec, "import sys; print(sys.prefix); import ssl, json, sqlite3")
        assert said == ["/repo/.venv"]
        assert (await inside(provider, spec, "echo $VIRTUAL_ENV; command -v python3")).out == [b"/repo/.venv", b"/repo/.venv/bin/python3"]
        own = await run(await provider.attach("guest"), "sh", "-c", "command -v sh", env={"PATH": "/bin"})
        assert own.out == [b"/bin/sh"]
    finally:
        await provider.destroy("guest")
        provider.close()


async def test_the_bundled_claude_runs(tmp_path: Path) -> None:
    found = find_spec("claude_agent_sdk")
    folder = Path(found.origin or "").parent / "_bundled" if found else Path("/nonexistent")
    if not (folder / "claude").exists():
        pytest.skip("claude-agent-sdk brings no program here")
    provider = ProcessSandboxes(tmp_path / "state", os.environ["PATH"], readonly=(folder,))
    try:
        done = await run(await provider.create(local_spec(provider, tmp_path, "guest")), str(folder / "claude"), "--version")
        assert done.exit.code == 0, done
        assert b"Claude Code" in done.out[0]
    finally:
        await provider.destroy("guest")
        provider.close()


async def test_fifty_start_at_once(provider: ProcessSandboxes, tmp_path: Path) -> None:
    places = [await provider.create(local_spec(provider, tmp_path, f"guest-{number}")) for number in range(50)]
    done = await asyncio.gather(*(run(place, "sh", "-c", "echo x > here; cat here") for place in places))
    assert {(one.exit.code, *one.out) for one in done} == {(0, b"x")}


async def test_a_missing_bubblewrap_is_told_with_its_cure(tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    provider = ProcessSandboxes(tmp_path / "state", str(empty), bubblewrap="no-such-bwrap")
    with pytest.raises(Unavailable, match="not installed") as caught:
        await provider.check()
    assert "apt-get install bubblewrap" in caught.value.hint
    provider.close()
