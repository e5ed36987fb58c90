"""A run's set-up commands (`pip install …`), run once per base and lock files; their result lies frozen under every task."""

from dataclasses import replace

from claudecluster.engine.parts import Parts
from claudecluster.engine.steps.gates import Gates, sandbox_spec
from claudecluster.engine.steps.scene import Scene
from claudecluster.model.errors import Unavailable
from claudecluster.model.event import Change
from claudecluster.model.tree import Wanted

SETUP_TIMEOUT = 3600.0  # seconds for one set-up command


class SetUp:
    """Makes set-up layers."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def make(self, scene: Scene) -> None:
        """Make the run's layer unless it exists. Raises Unavailable where a command fails: no task could work without it."""
        if not scene.layer or await scene.hub.frozen(scene.layer):
            return
        name = f"{scene.run}.setup"
        await self._parts.sandboxes.destroy(name)
        await scene.hub.discard_home(name)
        workspace = await scene.hub.workspace(Wanted(name, scene.record.base, home=name, share=scene.order.plan.share))
        spec = replace(
            sandbox_spec(name, workspace, scene.order), network="full"
        )  # the one place with network: the user's own commands, no agent
        sandbox = await self._parts.sandboxes.create(spec)
        try:
            for command in scene.order.plan.setup:
                run = await Gates(self._parts).command(sandbox, "setup", command, SETUP_TIMEOUT)
                key = f"setup/{command}"
                await self._parts.store.change(
                    Change(scene.run, "setup.ran", data={"command": command, "exit_code": run.exit_code, "duration": run.duration}, key=key)
                )
                if not run.passed:
                    last = (run.output.strip().splitlines() or [run.reason or "no output"])[-1]
                    raise Unavailable(f"set-up command {command!r} failed: {last}", hint="run it by hand in a fresh clone to see why")
            await self._parts.sandboxes.destroy(name)
            await scene.hub.freeze(workspace, scene.layer)
        finally:
            await self._parts.sandboxes.destroy(name)
            await scene.hub.discard(name)
            await scene.hub.discard_home(name)
