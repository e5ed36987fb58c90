"""One attempt: an agent works in a sandbox, everything it made goes to the hub, then the result is judged.

The steps of the attempt's workflow. Each may run again after a crash: names were decided before, refs are compared and
swapped, facts carry a key. What an outcome means for the task is the task workflow's business.
"""

import asyncio
import contextlib
import os
import shlex
from contextlib import AsyncExitStack
from dataclasses import replace

from claudecluster.engine.orders import ERRAND, VERDICT, WORKED, Data, Errand, Verdict, Worked, pack
from claudecluster.engine.parts import Parts
from claudecluster.engine.steps.gates import Gates, Site, sandbox_spec
from claudecluster.engine.steps.journal import journal
from claudecluster.engine.steps.scene import Scene, Scenes
from claudecluster.engine.steps.workers import Starts, Workers
from claudecluster.limits.summary import tokens
from claudecluster.model import ids
from claudecluster.model.errors import ClusterError, Refused, Unavailable
from claudecluster.model.event import Change
from claudecluster.model.evidence import Accept, Ask, Changes, Escalate, Evidence, Outcome, Reject, Report, Retry
from claudecluster.model.evidence import Verdict as Sight
from claudecluster.model.run import TaskState
from claudecluster.model.task import Gate, Task
from claudecluster.model.tree import Wanted
from claudecluster.ports.agent import Agent, Brief
from claudecluster.ports.gateway import Door, Visitor
from claudecluster.supervisor import feedback, policy, scope
from claudecluster.supervisor.judgement import Judgement, Undecided

REVERT = "revert"  # the engine's own agent: takes a landed commit back, without a sandbox


class Attempts:
    """The side effects of attempts."""

    def __init__(self, parts: Parts, scenes: Scenes) -> None:
        self._parts = parts
        self._scenes = scenes
        self._gates = Gates(parts)
        self._workers: Workers | None = None
        self._judges: asyncio.Semaphore | None = None
        self._starts = Starts()

    async def work(self, data: Data) -> Data | None:
        """Let the agent do its errand. Returns a Worked, also when nothing could be done, and why; None if the task is over already."""
        errand = ERRAND.validate_python(data)
        scene = await self._scenes.of(errand.run)
        task = scene.task(errand.task)
        async with self._staff(scene).one(scene.priorities[task.id]):
            return await self._worked(errand, task, scene)

    def _staff(self, scene: Scene) -> Workers:
        if self._workers is None:
            self._workers = Workers(scene.order.workers)
        return self._workers

    async def _worked(self, errand: Errand, task: Task, scene: Scene) -> Data | None:
        again = await self._begin(errand)
        if again is None:
            return None
        try:
            report = Report(Outcome.FINISHED) if task.agent == REVERT else await self._session(errand, task, scene, again=again)
        except Unavailable as error:
            delay = await self._limited(errand, task) if error.delay is None else error.delay
            return pack(WORKED, Worked(trouble=error.message, hint=error.hint, delay=delay))
        except ClusterError as error:
            return pack(WORKED, Worked(trouble=error.message, hint=error.hint, refused=isinstance(error, Refused)))
        return pack(WORKED, Worked(report=report))

    async def judge(self, data: Data, worked: Data) -> Data:
        """Commit everything the agent made to the hub; look, run the gates, decide. Returns a Verdict."""
        errand = ERRAND.validate_python(data)
        report = WORKED.validate_python(worked).report or Report(Outcome.FAILED)
        try:
            scene = await self._scenes.of(errand.run)
            if self._judges is None:  # judging occupies no worker, but no more of it at once than there are workers
                self._judges = asyncio.Semaphore(scene.order.workers)
            await self._starts.none(self._staff(scene))
            async with self._judges:
                changes = await self._harvest(scene, errand)
                evidence = Evidence(scene.task(errand.task), errand.attempt, report, changes)
                if evidence.task.agent == REVERT or policy.before_gates(evidence.task, evidence, spent=errand.spent) is None:
                    evidence = await self._look(scene, errand, evidence)  # gates cost minutes; a failed agent's tree is not worth them
        except ClusterError as error:
            return pack(VERDICT, Verdict("trouble", f"{error.message} ({error.hint})" if error.hint else error.message))
        verdict = self._decide(errand, evidence)
        await self._record(errand, evidence, verdict)
        return pack(VERDICT, verdict)

    async def _harvest(self, scene: Scene, errand: Errand) -> Changes:
        """Put what the agent made under a ref, before anything else happens to it."""
        task = scene.task(errand.task)
        ref = ids.attempt_ref(errand.run, task.id, errand.attempt)
        if task.agent == REVERT:
            return await self._revert(scene, task, errand, ref)
        workspace = await scene.hub.workspace(_wanted(scene, task, errand, keep=True))
        return await scene.hub.harvest(workspace, ref, f"{task.id}: attempt {errand.attempt} of run {errand.run}\n")

    async def _begin(self, errand: Errand) -> bool | None:
        """Write down that the attempt starts. Returns whether it had started before: then a crash lies between; None if the task is over."""
        store, now, mine = self._parts.store, self._parts.clock.now(), ids.new_run()
        first = await store.note(errand.run, f"{errand.task}/{errand.attempt}/started", mine) == mine
        kind = "attempt.started" if first else "attempt.resumed"
        state = {"state": TaskState.RUNNING, "attempts": errand.attempt, "session": session_of(errand)}
        attempt = Change(
            errand.run,
            kind,
            errand.task,
            errand.attempt,
            set=state,
            data={"text": errand.text[:500], "base": errand.base, "session": session_of(errand), "pid": os.getpid()},
            key=f"{errand.task}/{errand.attempt}/{kind}/{mine}",
            unless_over=True,
        )
        if first and errand.attempt == 1:
            begun = Change(errand.run, "task.started", errand.task, set={"started": now}, key=f"{errand.task}/started", unless_over=True)
            going = await store.change(begun, attempt)
        else:
            going = await store.change(attempt)
        return not first if going else None

    async def _session(self, errand: Errand, task: Task, scene: Scene, *, again: bool) -> Report:
        parts = self._parts
        agent = parts.agent(task.agent)
        continues = bool(getattr(agent, "continues", True))
        keep = (continues and again) or not errand.fresh
        name = ids.attempt_name(errand.run, task.id, errand.attempt)
        async with AsyncExitStack() as stack:
            starting = stack.enter_context(contextlib.ExitStack())
            starting.enter_context(self._starts.one())
            workspace = await scene.hub.workspace(_wanted(scene, task, errand, keep=keep))
            door = await self._door(stack, agent, name, scene, errand)
            spec = replace(sandbox_spec(name, workspace, scene.order), env=dict(task.env), socket=door.socket if door else None)
            sandbox = await parts.sandboxes.create(spec)
            stack.push_async_callback(parts.sandboxes.destroy, name)
            brief = Brief(
                task=replace(task, model=errand.model or task.model),
                attempt=errand.attempt,
                text=_again_text(errand.text) if again and continues else errand.text,
                session=session_of(errand),
                resumed=again or errand.resumed,
                env={key: value.replace("{socket}", sandbox.socket) for key, value in door.env.items()} if door else {},
            )
            hear = await stack.enter_async_context(journal(parts.store, parts.clock, errand.run, task.id, errand.attempt))
            starting.close()
            return await agent.run(brief, sandbox, hear)

    async def _door(self, stack: AsyncExitStack, agent: Agent, name: str, scene: Scene, errand: Errand) -> Door | None:
        if not getattr(agent, "needs_model", True):
            return None
        task = scene.task(errand.task)
        run_left = _left(scene.order.budget_usd, (await self._parts.store.usage(errand.run)).cost_usd, f"run {errand.run}", "--budget-usd")
        used = (await self._parts.store.task(errand.run, task.id)).usage
        task_left = _left(task.budget_usd, used.cost_usd, f"task {task.id}", "budget_usd")
        tokens_left = _left(task.budget_tokens, tokens(used), f"task {task.id}", "budget_tokens")
        visitor = replace(
            _visitor(errand, task),
            priority=-scene.priorities[task.id],  # when models are short, the critical path goes first
            budget_usd=min((left for left in (run_left, task_left) if left is not None), default=None),
            budget_tokens=None if tokens_left is None else int(tokens_left),
        )
        door = await self._parts.gateway.open(name, visitor)
        stack.push_async_callback(self._parts.gateway.close, name)
        return door

    async def _limited(self, errand: Errand, task: Task) -> float | None:
        """Return how long the models' limits last, if it is they that keep this task from its work and their end is known."""
        if not getattr(self._parts.agent(task.agent), "needs_model", True):
            return None
        return await self._parts.gateway.delay(_visitor(errand, task)) or None

    async def _revert(self, scene: Scene, task: Task, errand: Errand, ref: str) -> Changes:
        """Take the commit in `task.run` back, in memory: merge its parent's tree as if it had been made after it."""
        landed, parent = task.run.split()
        merged = await scene.hub.merge(landed, errand.base, parent)
        if merged.conflicts:
            return Changes(errand.base, errand.base, merged.tree, ())
        at = float(str(await self._parts.store.note(errand.run, f"{task.id}/at", self._parts.clock.now())))
        commit = await scene.hub.commit(merged.tree, errand.base, f"{task.id}\n", at=at)
        if await scene.hub.head(ref) != commit:
            await scene.hub.advance(ref, commit, await scene.hub.head(ref))
        return Changes(errand.base, commit, merged.tree, (landed,))

    async def _look(self, scene: Scene, errand: Errand, evidence: Evidence) -> Evidence:
        gates = (*_resolved(errand), *scene.order.plan.gates_of(evidence.task))
        name = f"{ids.attempt_name(errand.run, errand.task, errand.attempt)}.gates"
        site = Site(name, scene.record.base, evidence.changes.commit, scene.layer)
        findings = [] if evidence.task.agent == REVERT else [scope.scope(evidence.task, evidence.changes)]
        checks = [gate.check for gate in gates if gate.check]
        findings += await self._gates.look(scene.hub, scene.order, site, evidence, checks)
        evidence = replace(evidence, findings=tuple(findings))
        if any(finding.verdict is Sight.FAIL for finding in findings):  # gates cost minutes; a bad patch is not worth them
            return evidence
        return replace(evidence, gates=await self._gates.run(scene.hub, scene.order, site, gates))

    def _decide(self, errand: Errand, evidence: Evidence) -> Verdict:
        if evidence.task.agent == REVERT and evidence.changes.empty:
            return Verdict("reject", "Later changes overlap with it: it cannot be taken back by itself.", changes=evidence.changes)
        return verdict_of(policy.decide(evidence.task, evidence, spent=errand.spent), evidence)

    async def _record(self, errand: Errand, evidence: Evidence, verdict: Verdict) -> None:
        data = {
            "decision": verdict.kind,
            "why": verdict.why,
            "commit": evidence.changes.commit,
            "files": list(evidence.changes.files[:50]),
            "report": {"outcome": evidence.report.outcome.value, "error": evidence.report.error[:500], "text": evidence.report.text[:500]},
            "findings": [f"{finding.check}: {finding.verdict.value}: {finding.why}" for finding in evidence.findings],
            "gates": [[gate.name, gate.exit_code, gate.duration] for gate in evidence.gates],
        }
        key = f"{errand.task}/{errand.attempt}/decided"
        state = {"decision": f"{verdict.kind}: {verdict.why}", "gates": evidence.gates, "model": evidence.report.model}
        await self._parts.store.change(
            Change(errand.run, "attempt.decided", errand.task, errand.attempt, set=state, data=data, key=key, unless_over=True)
        )


def _visitor(errand: Errand, task: Task) -> Visitor:
    return Visitor(
        errand.run,
        task.id,
        errand.attempt,
        errand.model or task.model,
        task.category.value,
        privacy=task.privacy,
        fallback=task.fallback,
        files=tuple(task.files),
    )


def _resolved(errand: Errand) -> tuple[Gate, ...]:
    """Return the gate that no conflict marker is left, for an attempt that began with some: it may be the only one there is."""
    if not errand.conflicts:
        return ()
    files = " ".join(shlex.quote(path) for path in errand.conflicts)  # some may be gone: what is found counts, not grep's own exit
    command = f"if grep -nHE '^(<{{7}}|>{{7}}) ' -- {files} 2>/dev/null | grep .; then exit 1; fi"
    return (Gate("conflict-markers", command, 60.0),)


def _left(budget: float | None, used: float, whose: str, where: str) -> float | None:
    """Return what is left of a budget. Raises Refused if nothing is."""
    if budget is None:
        return None
    if used >= budget:
        raise Refused(f"the budget of {whose} is used up: {used:g} of {budget:g}", hint=f"run it again with a larger {where}")
    return budget - used


def session_of(errand: Errand) -> str:
    """Return the agent session's id: one for all of a task's attempts."""
    return ids.session_id(errand.run, errand.task, 1)


def workspace_name(run: str, task: str) -> str:
    """Return the name of the workspace and home that a task's attempts share."""
    return f"{run}.{task}"


def _wanted(scene: Scene, task: Task, errand: Errand, *, keep: bool) -> Wanted:
    name = workspace_name(errand.run, task.id)
    at = errand.at or (errand.base if errand.base != scene.record.base else "")
    return Wanted(name, scene.record.base, at=at, home=name, share=scene.order.plan.share, layer=scene.layer, keep=keep)


def verdict_of(decision: Judgement, evidence: Evidence) -> Verdict:
    """Return a decision as data for the task's workflow."""
    changes, gates = evidence.changes, evidence.gates
    match decision:
        case Accept(why):
            return Verdict("accept", why, changes=changes, gates=gates)
        case Retry(why, text):
            return Verdict("retry", why, text, changes=changes, gates=gates)
        case Escalate(why, model, text):
            return Verdict("escalate", why, text, model, changes=changes, gates=gates)
        case Ask(why, question):
            return Verdict("ask", why, question, changes=changes, gates=gates)
        case Reject(why, agent_failed):
            return Verdict("reject", why, changes=changes, gates=gates, agent_failed=agent_failed)
        case Undecided(why):
            return Verdict("trouble", why, changes=changes, gates=gates)


def _again_text(text: str) -> str:
    """Return what an interrupted session is told: it may never have heard its order, so that is said again."""
    return f"{feedback.resumed()}\n\nThe order was:\n\n{text}"
