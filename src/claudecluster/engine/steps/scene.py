"""Where a run takes place: its record, its order, its hub, its set-up layer. Looked up once per process."""

from collections.abc import Mapping
from dataclasses import dataclass

from claudecluster.engine.orders import order_of
from claudecluster.engine.parts import Parts
from claudecluster.graph import order as graph
from claudecluster.model import ids
from claudecluster.model.errors import NotFound
from claudecluster.model.order import Order
from claudecluster.model.run import RunRecord
from claudecluster.model.task import Task
from claudecluster.ports.workspace import Hub


@dataclass(frozen=True, slots=True)
class Scene:
    """What does not change while a run lasts. `layer` is the key of its set-up layer, empty without one.

    `priorities` has a number for each task, smaller first: the user's wish, then the critical path.
    """

    record: RunRecord
    order: Order
    hub: Hub
    layer: str
    priorities: Mapping[str, int]

    @property
    def run(self) -> str:
        """The run's id."""
        return self.record.id

    @property
    def head(self) -> str:
        """The hub ref of what landed."""
        return ids.head_ref(self.record.id)

    def task(self, task: str) -> Task:
        """Return a task of the order. Raises NotFound."""
        for found in self.order.plan.tasks:
            if found.id == task:
                return found
        raise NotFound(f"run {self.run} has no task {task!r}")


class Scenes:
    """The scenes of the runs this process serves."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._known: dict[str, Scene] = {}

    async def of(self, run: str) -> Scene:
        """Return a run's scene. Raises NotFound, Refused or Unavailable as the store and the repository do."""
        if run not in self._known:
            record = await self._parts.store.run(run)
            order = order_of(record.spec)
            hub = await self._parts.repositories.open(record.repo)
            layer = await hub.layer_key(record.base, order.plan.setup) if order.plan.setup else ""
            self._known[run] = Scene(record, order, hub, layer, graph.priority(order.plan))
        return self._known[run]
