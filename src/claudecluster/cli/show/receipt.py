"""`receipt`: the signed statements of what landed, shown and checked offline."""

import asyncio
import json
from typing import Annotated, Any

import typer

from claudecluster.assembly.settings import Settings, load
from claudecluster.cli import exits, voice
from claudecluster.cli.loading import load as module
from claudecluster.cli.text import money, table
from claudecluster.model.errors import NotFound

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, no_args_is_help=True, help="Show or verify the signed receipts of what landed."
)
Run = Annotated[str, typer.Argument(show_default=False, help="Run whose landings are meant.")]
Task = Annotated[str, typer.Argument(show_default=False, help="One task [default: all that landed].")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@app.command()
def show(run: Run, task: Task = "", as_json: Json = False) -> int:
    """Show what each receipt says, without checking it."""
    with asyncio.Runner() as runner:
        found = runner.run(_stored(load().settings, run, task))
    if as_json:
        voice.as_json({"run": run, "receipts": [{"task": name, **json.loads(text)} for name, text in found]})
        return exits.LANDED
    for name, text in found:
        voice.data(_readable(name, json.loads(text)["receipt"]))
    if not found:
        voice.say(f"nothing of run {run} has landed, so there are no receipts")
    return exits.LANDED


@app.command()
def verify(run: Run, task: Task = "", as_json: Json = False) -> int:
    """Check signatures, and that each landed tree is the tree its gates passed on. Exits 1 if anything is wrong."""
    with asyncio.Runner() as runner:
        found = runner.run(_proofs(load().settings, run, task))
    sound = all(not proof.problems for proof in found)
    if as_json:
        receipts = [{"task": proof.task, "ok": not proof.problems, "problems": list(proof.problems)} for proof in found]
        voice.as_json({"run": run, "ok": sound, "receipts": receipts})
        return exits.LANDED if sound else exits.FAILED
    for proof in found:
        commit, tree = str(proof.receipt.get("commit", ""))[:10], str(proof.receipt.get("tree", ""))[:10]
        voice.data(f"{'ok ' if not proof.problems else 'BAD'}  {proof.task}  commit {commit}  tree {tree}")
        for problem in proof.problems:
            voice.data(f"     {voice.one_line(problem)}")
    if not found:
        voice.say(f"nothing of run {run} has landed, so there is nothing to verify")
    return exits.LANDED if sound else exits.FAILED


@app.command()
def key() -> int:
    """Print the public key of landed commits as a line for git's gpg.ssh.allowedSignersFile, for `git verify-commit`."""
    voice.data(module("claudecluster.assembly.proofs").allowed_signer(load().settings))
    return exits.LANDED


async def _stored(settings: Settings, run: str, task: str) -> list[tuple[str, str]]:
    async with module("claudecluster.assembly.build").reading(settings) as store:
        await (store.task(run, task) if task else store.run(run))
        found: list[tuple[str, str]] = await store.receipts(run, task)
    if task and not found:
        raise NotFound(f"task {task} of run {run} has not landed, so it has no receipt", hint=f"claudecluster status {run}")
    return found


async def _proofs(settings: Settings, run: str, task: str) -> list[Any]:
    async with module("claudecluster.assembly.build").reading(settings) as store:
        found: list[Any] = await module("claudecluster.assembly.proofs").proofs(settings, store, run, task)
        return found


def _readable(name: str, receipt: dict[str, Any]) -> str:
    usage = receipt.get("usage") or {}
    lines = [
        f"{name}  commit {receipt.get('commit', '')}",
        f"  run      {receipt.get('run', '')}, branch {receipt.get('branch', '')} of {receipt.get('repo', '')}",
        f"  tree     {receipt.get('tree', '')} (tested and landed)",
        f"  onto     {receipt.get('head_before', '')}, base {receipt.get('base', '')}",
        f"  agent    {receipt.get('agent', '')} {', '.join(receipt.get('models') or [])}, attempt {receipt.get('attempts', '')}".rstrip(),
        f"  cost     {money(float(usage.get('cost_usd', 0.0)))}",
        f"  key      {receipt.get('key', '')}",
    ]
    gates = [(gate["name"], str(gate["exit_code"]), f"{gate['duration_s']:.1f} s", gate["command"]) for gate in receipt.get("gates") or []]
    return "\n".join([*lines, *(f"  gate     {line}" for line in table(("name", "exit", "time", "command"), gates)[1:]), ""])
