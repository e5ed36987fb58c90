"""Promise one, kept by force: `kill -9` the serving process at random moments, resume, and look for anything lost, doubled or left behind.

CHAOS_KILLS sets how many kills there are in all (`make chaos N=500`), CHAOS_SEED repeats a series. A failure prints its seed.
"""

import contextlib
import json
import os
import random
import secrets
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

KILLS = int(os.environ.get("CHAOS_KILLS", "40"))
PER_RUN = 8
RUNS = -(-KILLS // PER_RUN)
SEED = int(os.environ.get("CHAOS_SEED", "0")) or 0
PATIENCE = 90.0  # seconds for a resumed run to end
GATE = 'for made in *.txt; do test "$(cat "$made")" = "${made%.txt}" || exit 1; done'
NEEDS = {
    "a1": [],
    "a2": [],
    "a3": [],
    "a4": [],
    "b1": ["a1"],
    "b2": ["a1", "a2"],
    "b3": ["a3"],
    "b4": ["a4"],
    "c1": ["b1", "b2"],
    "c2": ["b3"],
    "c3": ["b2", "b4"],
    "d1": ["c1", "c2", "c3"],
}


@dataclass
class World:
    """One run: its repository, its state, its temporary folder, and what was done to it. `mark` is in every path of it."""

    folder: Path
    repo: Path
    script: str
    dice: random.Random
    mark: str
    story: list[str] = field(default_factory=list)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def state(self) -> Path:
        """The state folder."""
        return self.folder / "state"

    @property
    def tmp(self) -> Path:
        """The folder for temporary files."""
        return self.folder / "tmp"

    @property
    def env(self) -> dict[str, str]:
        """The environment of every process of this world."""
        return {**os.environ, "CLAUDECLUSTER_HOME": str(self.state), "TMPDIR": str(self.tmp), "CHAOS_MARK": self.mark}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command line in its own process group."""
        with (self.folder / "talk").open("a") as talk:
            process = subprocess.Popen(
                [self.script, *arguments],
                cwd=self.repo,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=talk,
                text=True,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def ask(self, *arguments: str) -> tuple[int, str]:
        """Run the command line to its end."""
        process = self.start(*arguments)
        try:
            out, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.fail(f"`{' '.join(arguments)}` did not end within {PATIENCE:g} s")
        return process.returncode, out

    def run(self) -> str:
        """Return the run's id; empty while there is none."""
        found = self.query("select id from cc_runs")
        return str(found[0][0]) if found else ""

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the store; nothing while there is none."""
        try:
            database = sqlite3.connect(f"file:{self.state / 'state.db'}?mode=ro", uri=True, timeout=5)
        except sqlite3.OperationalError:
            return []
        try:
            return database.execute(sql).fetchall()
        except sqlite3.OperationalError:
            return []
        finally:
            database.close()

    def fail(self, why: str) -> None:
        """Fail the test with the whole story."""
        talk = (self.folder / "talk").read_text()[-4000:]
        events = "\n".join(f"{seq} {kind} {task}" for seq, kind, task in self.query("select seq, kind, task from cc_events order by seq"))
        story = "\n".join(self.story)
        pytest.fail(f"{why}\n{story}\n-- events\n{events[-6000:]}\n-- stderr\n{talk}", pytrace=False)

    def expect(self, holds: object, why: str) -> None:
        """Fail unless it holds."""
        if not holds:
            self.fail(why)


@pytest.fixture
def world(request: pytest.FixtureRequest, make_repo: Callable[..., Path], cli: Any, tmp_path: Path) -> Iterator[World]:
    """Make a world of its own for a seed."""
    seed = SEED + request.param if SEED else secrets.randbelow(10**9)
    mark = f"chaos-{secrets.token_hex(6)}"
    folder = tmp_path / mark
    folder.mkdir()
    (folder / "tmp").mkdir()
    tasks = [
        {
            "id": name,
            "run": f"sleep 0.{2 + number % 4}; printf {name} >> {name}.txt",
            "needs": needs,
            "max_attempts": 1,
            "env": {"CHAOS_MARK": mark},
        }
        for number, (name, needs) in enumerate(NEEDS.items())
    ]
    (folder / "tasks.json").write_text(json.dumps({"gates": [{"name": "once", "run": GATE}], "tasks": tasks}))
    made = World(
        folder, make_repo(f"{mark}/repo"), cli.script, random.Random(seed), mark, [f"CHAOS_SEED={seed - request.param if SEED else seed}"]
    )
    yield made
    for pid in marked(made):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in made.processes:
        if process.stdout and not process.stdout.closed:
            process.communicate()


def marked(world: World) -> list[int]:
    """Return the processes that belong to a world: its mark is in their arguments or environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            said = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if world.mark.encode() in said:
            found.append(int(entry.name))
    return found


def killed(world: World, process: subprocess.Popen[str]) -> bool:
    """Let it live for a random time, or until a random number of facts more are written; kill only it. False: it had ended before."""
    dice = world.dice
    began = time.monotonic()
    if dice.random() < 0.5:
        moment = f"{(lifetime := dice.uniform(0.05, 2.5)):.2f} s"
        while time.monotonic() - began < lifetime and process.poll() is None:
            time.sleep(0.005)
    else:
        (before,) = world.query("select count(*) from cc_events") or [(0,)]
        more = dice.randint(1, 14)
        moment = f"{more} facts more"
        while process.poll() is None and time.monotonic() - began < PATIENCE:
            (now,) = world.query("select count(*) from cc_events") or [(0,)]
            if now[0] >= before[0] + more:
                break
            time.sleep(0.002)
    if process.poll() is not None:
        process.communicate()
        return False
    process.kill()
    process.communicate()
    world.story.append(f"killed after {moment} ({time.monotonic() - began:.2f} s)")
    return True


def begin(world: World) -> subprocess.Popen[str]:
    """Start or go on, as a user would."""
    if run := world.run():
        return world.start("resume", run, "--json")
    return world.start("run", "--tasks", str(world.folder / "tasks.json"), "--branch", "result", "--workers", "4", "--json")


def git(at: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=at, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("world", range(RUNS), indirect=True, ids=lambda number: f"run{number}")
def test_nothing_is_lost_doubled_or_left_behind(world: World) -> None:
    kills = 0
    for _ in range(PER_RUN * 3):
        if kills == PER_RUN or not killed(world, begin(world)):
            break
        kills += 1
    process = begin(world)
    try:
        out, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        world.fail(f"after {kills} kills the run did not end within {PATIENCE:g} s")
    world.story.append(f"{kills} kills; resume ended with {process.returncode}")
    print("; ".join(world.story))  # noqa: T201 - shown with -s and on failure
    world.expect(process.returncode == 0, out)
    everything_landed_once(world, json.loads(out))
    the_tree_is_green(world)
    receipts_verify(world)
    every_attempt_is_kept(world)
    nothing_is_left(world)


@pytest.mark.parametrize("world", [0], indirect=True, ids=["two"])
def test_a_second_process_watches_and_takes_over_when_the_first_dies(world: World) -> None:
    first = world.start("run", "--tasks", str(world.folder / "tasks.json"), "--branch", "result", "--workers", "1", "--json")
    wait_for(world, first, lambda: len(world.query("select 1 from cc_events where kind = 'attempt.decided'")) >= 1)
    second = begin(world)
    wait_for(world, first, lambda: len(world.query("select 1 from cc_events where kind = 'attempt.decided'")) >= 6)
    only_by(world, first)
    first.kill()
    first.communicate()
    world.story.append("killed the first of two")
    out, _ = second.communicate(timeout=PATIENCE)
    world.expect(second.returncode == 0, out)
    everything_landed_once(world, json.loads(out))
    receipts_verify(world)
    nothing_is_left(world)


def wait_for(world: World, process: subprocess.Popen[str], true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        world.expect(process.poll() is None, "the run ended too early")
        world.expect(time.monotonic() < end, "it never came true")
        time.sleep(0.02)


def only_by(world: World, process: subprocess.Popen[str]) -> None:
    """Every attempt so far was started by this process, whoever else serves, or would like to."""
    started = [json.loads(data)["pid"] for (data,) in world.query("select data from cc_events where kind = 'attempt.started'")]
    world.expect(set(started) == {process.pid}, f"attempts were started by {started}, not only by {process.pid}")


def everything_landed_once(world: World, result: Mapping[str, Any]) -> None:
    world.expect(len(world.query("select id from cc_runs")) == 1, "there is more than one run")
    tasks = {task["id"]: task for task in result["tasks"]}
    world.expect(set(tasks) == set(NEEDS), f"tasks: {sorted(tasks)}")
    wrong = {
        name: (task["state"], task["landed"], task["error"])
        for name, task in tasks.items()
        if task["state"] != "done" or not task["landed"]
    }
    world.expect(not wrong, f"not landed: {wrong}")
    world.expect(
        all(task["attempts"] == 1 for task in tasks.values()), f"a kill cost an attempt: { {n: t['attempts'] for n, t in tasks.items()} }"
    )
    log = git(world.repo, "log", "--reverse", "--format=%H %(trailers:key=ClaudeCluster-Task,valueonly,separator=%x2C)", "main..result")
    commits = [line.split() for line in log.splitlines()]
    world.expect(sorted(line[1] for line in commits) == sorted(NEEDS), f"the branch has\n{log}")
    world.expect(
        {line[1]: line[0] for line in commits} == {name: task["commit"] for name, task in tasks.items()},
        f"other commits than reported\n{log}",
    )
    order = [line[1] for line in commits]
    early = [name for name in order if any(order.index(need) > order.index(name) for need in NEEDS[name])]
    world.expect(not early, f"landed before what they need: {early}")
    landed = world.query("select task, count(*) from cc_events where kind = 'task.landed' group by task having count(*) > 1")
    world.expect(not landed, f"landed more than once according to the facts: {landed}")


def the_tree_is_green(world: World) -> None:
    tree = world.folder / "tree"
    git(world.repo, "worktree", "add", "--quiet", "--detach", str(tree), "result")
    made = sorted(path.stem for path in tree.glob("*.txt"))
    world.expect(made == sorted(NEEDS), f"the tree has {made}")
    gate = subprocess.run(["sh", "-c", GATE], cwd=tree, check=False, timeout=60)
    world.expect(gate.returncode == 0, "the gate is red on the final tree")
    git(world.repo, "worktree", "remove", "--force", str(tree))


def receipts_verify(world: World) -> None:
    code, out = world.ask("receipt", "verify", world.run(), "--json")
    world.expect(code == 0, f"receipts do not verify: {out}")


def every_attempt_is_kept(world: World) -> None:
    hub = next(path for path in world.state.rglob("hub.git") if path.is_dir())
    refs = git(hub, "-c", "safe.directory=*", "for-each-ref", "--format=%(refname)").split()
    lost = [name for name in NEEDS if f"refs/claudecluster/{world.run()}/{name}/1" not in refs]
    world.expect(not lost, f"no ref holds the attempts of {lost}: {refs}")


def nothing_is_left(world: World) -> None:
    ends = time.monotonic() + 10
    while (alive := marked(world)) and time.monotonic() < ends:
        time.sleep(0.05)
    world.expect(not alive, f"processes are left: {[(pid, Path(f'/proc/{pid}/cmdline').read_bytes()) for pid in alive]}")
    world.expect(world.mark not in Path("/proc/self/mounts").read_text(), "a mount is left")
    world.expect(not list(world.tmp.iterdir()), f"temporary files are left: {list(world.tmp.iterdir())}")
    sockets = [path for path in world.state.rglob("*") if path.is_socket() or path.is_fifo()]
    world.expect(not sockets, f"sockets are left: {sockets}")
    litter = [path for name in ("workspaces", "homes", "scratch") for folder in world.state.rglob(name) for path in folder.iterdir()]
    litter += list(world.state.glob("sandboxes/*/@*"))
    world.expect(not litter, f"folders are left: {litter}")
    run = world.run()
    groups = [path for root in Path("/sys/fs/cgroup").glob("*") for path in root.rglob(f"*{run}*")]
    world.expect(not groups, f"control groups are left: {groups}")
