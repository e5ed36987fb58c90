"""Receipts on record, checked against the hub and our key. Called by `receipt verify`; starts no engine, asks no network."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claudecluster.assembly.settings import Settings, environment
from claudecluster.kit import processes
from claudecluster.kit.clock import SystemClock
from claudecluster.model.errors import NotFound
from claudecluster.model.run import RunRecord, TaskRecord
from claudecluster.ports.store import Store
from claudecluster.sandboxes.none import NoSandboxes
from claudecluster.workspaces import signing
from claudecluster.workspaces.receipts import Notary
from claudecluster.workspaces.repositories import GitRepositories


@dataclass(frozen=True, slots=True)
class Proof:
    """One task's receipt, as stored, and what is wrong with it; nothing where it holds."""

    task: str
    text: str
    problems: tuple[str, ...]

    @property
    def receipt(self) -> Mapping[str, Any]:
        """What the receipt says; empty where it is no receipt."""
        try:
            whole = json.loads(self.text)
        except ValueError:
            return {}
        inner = whole.get("receipt") if isinstance(whole, dict) else None
        return inner if isinstance(inner, dict) else {}


async def proofs(settings: Settings, store: Store, run: str, task: str = "") -> list[Proof]:
    """Check every landing of a run, or one task's. Raises NotFound for unknown names and for a task that has not landed."""
    record = await store.run(run)
    tasks = [await store.task(run, task)] if task else await store.tasks(run)
    landed = [found for found in tasks if found.landed]
    if task and not landed:
        raise NotFound(f"task {task} of run {run} has not landed, so it has no receipt", hint=f"claudecluster status {run}")
    if not landed:
        return []
    clock = SystemClock()
    signer = signing.load(settings.home / "keys")
    idle = NoSandboxes(settings.home / "sandboxes", settings.path, clock=clock)  # nothing is started in it
    hub = await GitRepositories(settings.home, idle, signer, env=environment(), clock=clock).open(record.repo)
    stored = dict(await store.receipts(run, task))
    notary = Notary(signer)
    tip = await _tip(record)
    found = []
    for landing in landed:
        text = stored.get(landing.id, "")
        wrong = [*await notary.problems(text, hub), *_mismatch(landing, text)] if text else ["it landed, but there is no receipt of it"]
        if tip and not await _holds(record.repo, tip, landing.commit):
            wrong.append(f"branch {record.branch} does not hold the commit any more: it was rewritten")
        found.append(Proof(landing.id, text, tuple(wrong)))
    return found


def allowed_signer(settings: Settings) -> str:
    """Return our public key as a line of git's `gpg.ssh.allowedSignersFile` (format: ssh-keygen(1), ALLOWED SIGNERS)."""
    return signing.load(settings.home / "keys").allowed_signer.rstrip("\n")


async def _tip(run: RunRecord) -> str:
    """Return where the user's branch is; empty where there is none (any more) to look at, which proves nothing."""
    if not run.published or not Path(run.repo).is_dir():
        return ""
    done = await _git(run.repo, "rev-parse", "--verify", "--quiet", f"refs/heads/{run.branch}")
    return done.out.decode().strip() if done.code == 0 else ""


async def _holds(repo: str, tip: str, commit: str) -> bool:
    return (await _git(repo, "merge-base", "--is-ancestor", commit, tip)).code == 0


async def _git(repo: str, *arguments: str) -> processes.Completed:
    return await processes.run(("git", "-c", "safe.directory=*", "-C", repo, *arguments), env=environment())


def _mismatch(landing: TaskRecord, text: str) -> list[str]:
    """Compare a receipt with the landing it is filed under: a good receipt of something else proves nothing here."""
    said = Proof(landing.id, text, ()).receipt
    ours = {"run": landing.run, "task": landing.id, "commit": landing.commit}
    return [f"it is about {name} {said.get(name)}, not {value}" for name, value in ours.items() if said and said.get(name) != value]
