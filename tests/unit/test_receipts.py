"""Receipts: what is signed cannot be changed, and what it says is compared with the commit itself."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from claudecluster.model.errors import Refused
from claudecluster.model.receipt import Receipt
from claudecluster.model.run import GateRun
from claudecluster.model.usage import Usage
from claudecluster.ports.receipts import Notary as NotaryPort
from claudecluster.workspaces import receipts, signing
from claudecluster.workspaces.receipts import Notary
from claudecluster.workspaces.repositories import GitRepositories, LocalHub


class NoPlaces:
    """A provider that nothing here asks for a sandbox."""

    kind = "none"
    overlays = False


@dataclass
class Scene:
    """A landing, its receipt and who signed it."""

    hub: LocalHub
    signer: signing.Signer
    receipt: Receipt
    text: str

    async def problems(self, text: str) -> list[str]:
        return await receipts.problems(text, self.hub, self.signer.public_key)

    async def other(self, **changes: Any) -> list[str]:
        """Return the problems of a receipt that says something else, signed by the right key."""
        return await self.problems(receipts.make(replace(self.receipt, **changes), self.signer))


@pytest.fixture
async def scene(repo: Path, tmp_path: Path) -> Scene:
    """Land a commit and issue its receipt."""
    signer = signing.load(tmp_path / "keys")
    hub = await GitRepositories(tmp_path / "state", NoPlaces(), signer, env=dict(os.environ)).open(str(repo))  # type: ignore[arg-type] - makes no sandbox
    base = await hub.resolve("")
    tree = await hub.tree(base)
    commit = await hub.commit(tree, base, "landed", at=100.0)
    await hub.advance("refs/claudecluster/r1234567/_head", commit, "")
    gates = (GateRun("tests", "pytest -q", 0, 1.25, "much output"), GateRun("lint", "ruff check", 0, 0.5))
    usage = Usage(requests=3, input_tokens=10, output_tokens=5, cost_usd=0.0125)
    receipt = Receipt(
        "r1234567",
        "fix-gcd",
        hub.source,
        "claudecluster/r1234567",
        base,
        base,
        tree,
        commit,
        gates,
        "claude-code",
        ("a-model",),
        usage,
        2,
        100.5,
        "0.1.0",
    )
    text = await Notary(signer).issue(receipt)
    return Scene(hub, signer, receipt, text)


async def test_an_honest_receipt_holds_and_reads_back(scene: Scene) -> None:
    notary: NotaryPort = Notary(scene.signer)
    assert await notary.problems(scene.text, scene.hub) == []
    found = receipts.read(scene.text)
    gates = tuple(replace(gate, output="") for gate in scene.receipt.gates)
    assert found == replace(scene.receipt, key=scene.signer.fingerprint, gates=gates)
    assert notary.public_key.startswith("ssh-ed25519 ")
    assert await notary.issue(scene.receipt) == scene.text


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every leaf of JSON data."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in paths(value[key], (*path, key))]
    if isinstance(value, list):
        return [leaf for place, item in enumerate(value) for leaf in paths(item, (*path, place))]
    return [path]


async def test_no_field_can_be_changed(scene: Scene) -> None:
    leaves = paths(json.loads(scene.text)["receipt"])
    assert len(leaves) > 25
    for path in leaves:
        data = json.loads(scene.text)
        place = data["receipt"]
        for key in path[:-1]:
            place = place[key]
        old = place[path[-1]]
        place[path[-1]] = old + 1 if isinstance(old, int | float) else old + "x"
        assert "the signature is not this key's over this text" in await scene.problems(json.dumps(data)), path


async def test_nothing_can_be_added_or_taken_away(scene: Scene) -> None:
    data = json.loads(scene.text)
    assert await scene.problems(json.dumps({**data, "note": "trust me"})) != []
    assert await scene.problems(json.dumps({**data, "receipt": {**data["receipt"], "note": "trust me"}})) != []
    for key in data["receipt"]:
        less = {name: value for name, value in data["receipt"].items() if name != key}
        assert await scene.problems(json.dumps({**data, "receipt": less})) != []
    fewer = {**data["receipt"], "gates": data["receipt"]["gates"][:1]}
    assert await scene.problems(json.dumps({**data, "receipt": fewer})) != []


async def test_another_layout_of_the_same_text_holds(scene: Scene) -> None:
    assert await scene.problems(json.dumps(json.loads(scene.text), indent=4)) == []


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"receipt": 1, "signature": ""}', '{"receipt": {}, "signature": ""}', "\x00", "{" * 100]
)
async def test_what_is_no_receipt_is_a_problem_not_an_error(scene: Scene, text: str) -> None:
    assert len(await scene.problems(text)) == 1
    with pytest.raises(Refused):
        receipts.read(text)


async def test_another_key_is_noticed(scene: Scene, tmp_path: Path) -> None:
    other = signing.load(tmp_path / "other")
    forged = receipts.make(scene.receipt, other)
    found = await scene.problems(forged)
    assert "the signature is not this key's over this text" in found
    assert any("names the key" in problem for problem in found)
    assert await receipts.problems(scene.text, scene.hub, other.public_key) != []
    assert await receipts.problems(scene.text, scene.hub, "no key") == ["not an OpenSSH public key"]


async def test_what_a_signed_receipt_says_is_compared_with_the_commit(scene: Scene, make_repo: Callable[..., Path]) -> None:
    hub, receipt = scene.hub, scene.receipt
    empty = await hub.tree(await hub.commit(await hub.tree(receipt.base), "", "x", at=1.0))
    assert empty == receipt.tree
    assert "the tree that landed is not the tree that was tested" in await scene.other(tree="0" * 40)
    assert "the commit's parent is not the head the receipt names" in await scene.other(head_before=receipt.commit)
    assert "the commit is not in the run's history" in await scene.other(run="r7654321")
    failing = (GateRun("tests", "pytest -q", 1, 1.0),)
    assert "gate tests did not pass (exit 1)" in await scene.other(gates=failing)
    assert "gate tests did not pass (exit None)" in await scene.other(gates=(GateRun("tests", "pytest -q", None, 1.0),))
    beside = await hub.commit(receipt.tree, receipt.base, "beside", at=5.0)
    assert await scene.other(commit=beside) == ["the commit is not in the run's history"]
    assert await scene.other(commit=receipt.base) != []
    for nonsense in ("0" * 40, "HEAD", "../../config", ""):
        assert len(await scene.other(commit=nonsense)) == 1


async def test_an_unsigned_commit_is_noticed(scene: Scene, tmp_path: Path) -> None:
    stranger = replace(scene.hub.history, signer=signing.load(tmp_path / "stranger"))
    commit = await stranger.commit(scene.receipt.tree, scene.receipt.commit, "by a stranger", 200.0)
    await scene.hub.advance("refs/claudecluster/r1234567/_head", commit, scene.receipt.commit)
    assert await scene.other(commit=commit, head_before=scene.receipt.commit) == ["the commit's signature is not this key's"]
    assert await scene.other() == [], "an earlier landing still holds"


async def test_a_hub_that_cannot_show_its_commits_proves_nothing(scene: Scene) -> None:
    assert await receipts.problems(scene.text, object(), scene.signer.public_key) == ["this hub cannot show its commits"]  # type: ignore[arg-type] - on purpose
