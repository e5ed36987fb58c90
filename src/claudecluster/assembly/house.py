"""Wires the rooms together: the only module that names concrete classes. Loaded by `build.py` when work is to be done."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from claudecluster.assembly import plugins
from claudecluster.assembly.access import gateway_config
from claudecluster.assembly.models.standing import keeping
from claudecluster.assembly.settings import Settings, environment
from claudecluster.engine.cluster import Cluster
from claudecluster.engine.parts import Parts
from claudecluster.gateway.gateway import LocalGateway
from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.ports.agent import Agent
from claudecluster.ports.check import Check
from claudecluster.ports.sandbox import SandboxProvider
from claudecluster.sandboxes.none import NoSandboxes
from claudecluster.sandboxes.process import ProcessSandboxes
from claudecluster.storage.store import SqlStore
from claudecluster.workspaces import signing
from claudecluster.workspaces.receipts import Notary
from claudecluster.workspaces.repositories import GitRepositories


@asynccontextmanager
async def opened(
    settings: Settings, store: SqlStore, *, sandbox: str, record: Path | None = None, replay: Path | None = None
) -> AsyncIterator[Cluster]:
    """Yield a Cluster on an open store. Raises Refused for an unknown sandbox, Unavailable."""
    clock = SystemClock()
    if sys.version_info < (3, 12):  # later versions do so by themselves: no thread for each child process
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.get_event_loop_policy().set_child_watcher(watcher)
    provider = sandboxes(settings, sandbox, claude_folder(), clock)
    told = gateway_config(settings, clock, record=record, replay=replay)
    gateway = LocalGateway(replace(told, past=store) if settings.budgets is not None else told, store.meter)
    await gateway.recall()
    parts = Parts(
        store=store,
        roster=store.roster,
        repositories=repositories(settings, provider, clock),
        sandboxes=provider,
        agent=_agent,
        check=_check,
        gateway=gateway,
        notary=Notary(signing.load(settings.home / "keys")),
        clock=clock,
        engine_url=engine_url(settings),
        version=version("claudecluster"),
    )
    cluster = Cluster(parts)
    try:
        async with keeping(settings.home, gateway.state.usage):
            yield cluster
    finally:
        await cluster.close()
        await gateway.aclose()
        close = getattr(provider, "close", None)
        if close is not None:
            close()


def sandboxes(settings: Settings, kind: str, readonly: tuple[Path, ...], clock: Clock) -> SandboxProvider:
    """Return the sandbox provider of that name. Raises Refused for an unknown one."""
    state = settings.home / "sandboxes"
    if not plugins.ours("sandboxes", kind):
        return cast("SandboxProvider", plugins.make("sandboxes", kind, {}))
    if kind == "none":
        return NoSandboxes(state, settings.path, clock=clock)
    return ProcessSandboxes(state, settings.path, readonly=readonly, clock=clock)


def repositories(settings: Settings, provider: SandboxProvider, clock: Clock) -> GitRepositories:
    """Return the hubs below the state folder."""
    owner = getattr(provider, "owner", None)
    return GitRepositories(settings.home, provider, signing.load(settings.home / "keys"), env=environment(), owner=owner, clock=clock)


def engine_url(settings: Settings) -> str:
    """Return where the durable engine keeps its tables: a file of its own beside the store, or the same PostgreSQL database."""
    if settings.database.startswith("sqlite"):
        return f"sqlite:///{settings.home / 'engine.db'}"
    return settings.database


def claude_folder() -> tuple[Path, ...]:
    """Return the folder of the Claude Code CLI that comes with the SDK, without importing it: that costs a second."""
    spec = find_spec("claude_agent_sdk")
    return (Path(spec.origin).parent / "_bundled",) if spec is not None and spec.origin else ()


@cache
def _agent(name: str) -> Agent:
    """Load an agent when a task names it: the SDK behind `claude-code` takes a second to import."""
    if plugins.ours("agents", name):
        return cast("Agent", plugins.load("agents", name)())
    return cast("Agent", plugins.make("agents", name, {}))


@cache
def _check(name: str) -> Check:
    return cast("Check", plugins.make("checks", name, {}))
