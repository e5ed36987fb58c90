"""Receipts: make one, read it, say what is wrong with it. Called by the engine (through `ports.receipts`) and the CLI.

A receipt is a JSON object `{"receipt": {...}, "signature": "..."}`. The signature (SSHSIG, namespace below) is over the
inner object in canonical form: keys sorted, no spaces, UTF-8. No network is needed to check one.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

from claudecluster.model.errors import ClusterError, Refused
from claudecluster.model.ids import head_ref
from claudecluster.model.receipt import Receipt
from claudecluster.model.run import GateRun
from claudecluster.model.usage import Usage
from claudecluster.ports.workspace import Hub
from claudecluster.workspaces import objects
from claudecluster.workspaces.signing import Signer, fingerprint, verify

NAMESPACE = "claudecluster-receipt"


@runtime_checkable
class Witness(Protocol):
    """The part of a hub that can show a commit's bytes, signature included."""

    async def raw(self, commit: str) -> bytes:
        """Return a commit's bytes. Raises NotFound."""
        ...


def make(receipt: Receipt, signer: Signer) -> str:
    """Return the signed text. The same receipt gives the same text."""
    inner = _plain(replace(receipt, key=signer.fingerprint))
    return json.dumps(
        {"receipt": inner, "signature": signer.sign(_canonical(inner), NAMESPACE)}, ensure_ascii=False, indent=1, sort_keys=True
    )


def read(text: str) -> Receipt:
    """Return what a text says, without checking it. Raises Refused if it is no receipt."""
    inner, _ = _parts(text)
    try:
        gates = tuple(GateRun(gate["name"], gate["command"], gate["exit_code"], gate["duration_s"]) for gate in inner["gates"])
        rest = {**inner, "gates": gates, "models": tuple(inner["models"]), "usage": Usage(**inner["usage"])}
        return Receipt(**rest)
    except (KeyError, TypeError) as error:
        raise Refused(f"not a receipt: {error}") from error


async def problems(text: str, hub: Hub, public_key: str) -> list[str]:
    """Return what is wrong with a receipt, a sentence each; nothing if it holds."""
    try:
        inner, signature = _parts(text)
        receipt = read(text)
        known = fingerprint(public_key)
    except Refused as error:
        return [error.message]
    found = []
    if not verify(_canonical(inner), signature, public_key, NAMESPACE):
        found.append("the signature is not this key's over this text")
    if receipt.key != known:
        found.append(f"it names the key {receipt.key}, not {known}")
    found += [f"gate {gate.name} did not pass (exit {gate.exit_code})" for gate in receipt.gates if not gate.passed]
    try:
        return found + await _landing(receipt, hub, public_key)
    except ClusterError as error:
        return [*found, error.message]


async def _landing(receipt: Receipt, hub: Hub, public_key: str) -> list[str]:
    """Compare what the receipt says with the commit itself."""
    if not isinstance(hub, Witness):
        return ["this hub cannot show its commits"]
    raw = await hub.raw(receipt.commit)
    commit = objects.parse(raw)
    checks = {
        "the hub's commit is not the one the receipt names": objects.name("commit", raw, receipt.commit) == receipt.commit,
        "the tree that landed is not the tree that was tested": commit.tree == receipt.tree,
        "the commit's parent is not the head the receipt names": commit.parents == (receipt.head_before,),
        "the commit's signature is not this key's": verify(commit.signed, commit.signature, public_key, "git"),
        "the commit is not in the run's history": await hub.contains(head_ref(receipt.run), receipt.commit),
    }
    return [sentence for sentence, holds in checks.items() if not holds]


@dataclass(frozen=True)
class Notary:
    """Issues and checks receipts under one key: `ports.receipts.Notary` has the promises."""

    signer: Signer

    @property
    def public_key(self) -> str:
        """The key as one line of OpenSSH."""
        return self.signer.public_key

    async def issue(self, receipt: Receipt) -> str:
        """Return the signed text."""
        return make(receipt, self.signer)

    async def problems(self, text: str, hub: Hub) -> list[str]:
        """Return what is wrong with a receipt."""
        return await problems(text, hub, self.public_key)


def _plain(receipt: Receipt) -> dict[str, Any]:
    gates = [
        {"name": gate.name, "command": gate.command, "exit_code": gate.exit_code, "duration_s": round(gate.duration, 3)}
        for gate in receipt.gates
    ]
    return {**asdict(receipt), "gates": gates}


def _canonical(inner: dict[str, Any]) -> bytes:
    return json.dumps(inner, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")


def _parts(text: str) -> tuple[dict[str, Any], str]:
    try:
        whole = json.loads(text)
    except ValueError as error:
        raise Refused(f"not a receipt: {error}") from error
    match whole:
        case {"receipt": dict(inner), "signature": str(signature), **rest} if not rest:
            return inner, signature
    raise Refused("not a receipt: it has no `receipt` and `signature`, or more than these")
