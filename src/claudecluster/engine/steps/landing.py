"""Landing: the only way onto a run's branch. What lands is, tree for tree, what passed.

Two steps. `prepare` merges in memory, runs the gates on the merged tree and writes the signed commit and its receipt, moving
nothing; its result, the intent, is durable. It may be made for a head that is still to come: that of the landing before it. `land`
moves the branch by compare-and-swap and says DONE. A crash between or inside them repeats a step that then finds its work done.
"""

from collections.abc import Callable
from dataclasses import dataclass

from claudecluster.engine.orders import INTENT, VERDICT, Data, Intent, Verdict, pack
from claudecluster.engine.parts import Parts
from claudecluster.engine.steps.attempt import REVERT
from claudecluster.engine.steps.gates import Gates, Site
from claudecluster.engine.steps.scene import Scene, Scenes
from claudecluster.model.errors import ClusterError, Conflict
from claudecluster.model.event import Change
from claudecluster.model.evidence import Changes
from claudecluster.model.receipt import Receipt
from claudecluster.model.run import GateRun, TaskState
from claudecluster.model.task import Task

RETRIES = (1.0, 2.0, 4.0)  # seconds before infrastructure that failed is tried again: the work is accepted, and must not be lost to that


class Landings:
    """The side effects of landings."""

    def __init__(self, parts: Parts, scenes: Scenes) -> None:
        self._parts = parts
        self._scenes = scenes
        self._gates = Gates(parts)

    async def prepare(self, run: str, task_id: str, base: str, data: Data, onto: str, plan: Callable[[str], None]) -> Data:
        """Return the Intent: a commit that may land, or why it cannot.

        `base` is what the attempt is merged from; `onto` the head it is made for, empty for today's. `plan` is told the commit
        before it is tested.
        """
        scene = await self._scenes.of(run)
        task = scene.task(task_id)
        verdict = VERDICT.validate_python(data)
        changes = verdict.changes
        if changes is None:
            raise ClusterError(f"task {task_id} has nothing to land")
        record = await self._parts.store.task(run, task_id)
        now = self._parts.clock.now()
        key = f"{task_id}/{record.attempts}/landing"
        landing = Change(run, "landing.started", task_id, record.attempts, set={"state": TaskState.LANDING}, key=key, unless_over=True)
        await self._parts.store.change(landing)
        made = _Made(base, verdict, changes, onto, now, plan)
        for wait in RETRIES:
            intent = await self._tried(scene, task, made)
            if not intent.trouble:
                break
            await self._parts.clock.sleep(wait)
        else:
            intent = await self._tried(scene, task, made)
        return pack(INTENT, intent)

    async def _tried(self, scene: Scene, task: Task, made: "_Made") -> Intent:
        try:
            return await self._intend(scene, task, made)
        except ClusterError as error:
            return Intent("", "", trouble=error.message)

    async def _intend(self, scene: Scene, task: Task, made: "_Made") -> Intent:
        base, verdict, changes, now = made.base, made.verdict, made.changes, made.now
        hub = scene.hub
        head = made.onto or await hub.head(scene.head)
        merged = await hub.merge(base, head, changes.commit)
        if merged.conflicts:
            return Intent(head, merged.tree, bounce=True, conflicts=merged.conflicts)
        if merged.tree == await hub.tree(head):
            return Intent(head, merged.tree, commit=head, nothing=True, gates=verdict.gates)
        commit = await hub.commit(merged.tree, head, message_of(scene, task), at=now)
        made.plan(commit)
        gates = verdict.gates if merged.tree == changes.tree else await self._again(scene, task, merged.tree)
        stuck = next((gate for gate in gates if gate.exit_code is None), None)
        if stuck is not None:
            return Intent(head, merged.tree, trouble=f"gate {stuck.name!r} could not run: {stuck.reason}", gates=gates)
        if not all(gate.passed for gate in gates):
            return Intent(head, merged.tree, bounce=True, gates=gates)
        receipt = await self._receipt(scene, task, Intent(head, merged.tree, commit, gates=gates), now)
        return Intent(head, merged.tree, commit, gates=gates, receipt=receipt)

    async def _again(self, scene: Scene, task: Task, tree: str) -> tuple[GateRun, ...]:
        """Run the gates on a merged tree nobody has tested yet."""
        site = Site(f"{scene.run}.{task.id}.landing", scene.record.base, tree, scene.layer)
        return await self._gates.run(scene.hub, scene.order, site, scene.order.plan.gates_of(task))

    async def _receipt(self, scene: Scene, task: Task, intent: Intent, now: float) -> str:
        record = await self._parts.store.task(scene.run, task.id)
        return await self._parts.notary.issue(
            Receipt(
                run=scene.run,
                task=task.id,
                repo=scene.record.repo,
                branch=scene.record.branch,
                base=scene.record.base,
                head_before=intent.head,
                tree=intent.tree,
                commit=intent.commit,
                gates=intent.gates,
                agent=task.agent,
                models=tuple(filter(None, (record.model or task.model,))),
                usage=record.usage,
                attempts=record.attempts,
                at=now,
                version=self._parts.version,
            )
        )

    async def land(self, run: str, task_id: str, data: Data) -> bool:
        """Move the branch and say DONE, or let a bounce stand. False if the branch is not what this was prepared for: prepare again."""
        scene = await self._scenes.of(run)
        intent = INTENT.validate_python(data)
        as_meant = await scene.hub.head(scene.head) == intent.head
        if intent.bounce:
            return as_meant
        if intent.nothing:
            if not as_meant and not (await self._parts.store.task(run, task_id)).state.over:
                return False
        else:
            try:
                await scene.hub.advance(scene.head, intent.commit, intent.head)
            except Conflict:
                if not await scene.hub.contains(scene.head, intent.commit):  # else: it landed before a crash, and others after it
                    return False
            await self._parts.store.add_receipt(run, task_id, intent.receipt)
        await self._done(scene, task_id, intent)
        return True

    async def _done(self, scene: Scene, task_id: str, intent: Intent) -> None:
        now = self._parts.clock.now()
        commit = "" if intent.nothing else intent.commit
        state = {
            "state": TaskState.DONE,
            "commit": commit,
            "landed": not intent.nothing,
            "gates": intent.gates,
            "ended": now,
            "error": "",
        }
        kind = "task.done" if intent.nothing else "task.landed"
        data = {"commit": commit, "tree": intent.tree, "head_before": intent.head}
        changes = [Change(scene.run, kind, task_id, set=state, data=data, key=f"{task_id}/over")]
        if not intent.nothing:
            changes.append(Change(scene.run, "run.advanced", set={"head": await scene.hub.head(scene.head)}, key=f"head/{intent.commit}"))
        await self._parts.store.change(*changes)


@dataclass(frozen=True, slots=True)
class _Made:
    """What is to be landed, and how: see `Landings.prepare`."""

    base: str
    verdict: Verdict
    changes: Changes
    onto: str
    now: float
    plan: Callable[[str], None]


def message_of(scene: Scene, task: Task) -> str:
    """Return the landing commit's message: what was asked, and trailers that name the run and the task."""
    first = (task.prompt.strip().splitlines() or [""])[0]
    if task.agent == REVERT:
        subject, body = task.prompt, f"This reverts commit {task.run.split()[0]}."
    else:
        subject = f"{task.id}: {first}" if first else task.id
        body = task.prompt.strip() if task.prompt.strip() != first else ""
    subject = subject if len(subject) <= 72 else subject[:69] + "…"
    trailers = f"ClaudeCluster-Run: {scene.run}\nClaudeCluster-Task: {task.id}\nClaudeCluster-Agent: {task.agent}"
    return "\n\n".join(part for part in (subject, body, trailers) if part) + "\n"
