"""Several Ollama servers as one: which of them live, what they have, which of them is least busy.

A server that failed is left alone for a while, longer each time; when all have failed, all are tried again. Asks `/api/tags`, `/api/ps` and
`/api/show`, each remembered for a short time. Sends no prompts: `ollama` does.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from claudecluster.gateway.local.asking import Http
from claudecluster.gateway.local.models import named
from claudecluster.gateway.provider import Failure
from claudecluster.kit.clock import Clock

TAGS_FOR, LOADED_FOR, SHOWN_FOR = 30.0, 2.0, 600.0  # seconds an answer is remembered
LONGEST_REST = 60.0
NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Shown:
    """What `/api/show` says of a model. `context` 0 and `capabilities` None: it does not say."""

    context: int = 0
    capabilities: frozenset[str] | None = None
    family: str = ""


@dataclass(slots=True)
class Instance:
    """One server as we know it."""

    url: str
    in_flight: int = 0
    failures: int = 0
    rest_until: float = NEVER
    models: tuple[str, ...] = ()
    models_at: float = NEVER
    loaded: frozenset[str] = frozenset()
    loaded_at: float = NEVER
    shown: dict[str, tuple[float, Shown]] = field(default_factory=dict)
    why: str = ""


class Fleet:
    """The servers of one provider. `slots` is what one serves at once (OLLAMA_NUM_PARALLEL)."""

    def __init__(self, urls: Sequence[str], slots: int, http: Http, clock: Clock, headers: Mapping[str, str]) -> None:
        self.instances = [Instance(url.rstrip("/")) for url in urls]
        self._slots = max(1, slots)
        self._http = http
        self._clock = clock
        self._headers = headers
        self._asking: dict[tuple[str, str], asyncio.Task[None]] = {}

    def load(self) -> float:
        """Return requests in flight over what the living servers serve at once."""
        alive = [instance for instance in self.instances if not self._resting(instance)] or self.instances
        return sum(instance.in_flight for instance in self.instances) / (self._slots * max(1, len(alive)))

    async def models(self) -> tuple[str, ...]:
        """Return the models any living server has, the first server's first."""
        await self._look(self._living())
        return tuple(dict.fromkeys(model for instance in self.instances for model in instance.models))

    async def pick(self, model: str, tried: Sequence[Instance]) -> Instance | None:
        """Return the least busy living server that has the model and was not tried, None if there is none."""
        await self._look([instance for instance in self._living() if instance not in tried])
        able = [instance for instance in self._living() if instance not in tried and named(model, instance.models)]
        if len(able) > 1:
            await self._look_closer(able)
        # Waiting behind another request costs more than loading the model; with a place free, where it is loaded is quickest.
        return min(
            able,
            key=lambda one: (one.in_flight >= self._slots, model not in one.loaded, one.in_flight, self.instances.index(one)),
            default=None,
        )

    async def show(self, model: str) -> Shown:
        """Return what the servers say about the model, an empty Shown if none does."""
        now = self._clock.monotonic()
        for instance in self._living():
            if not named(model, instance.models):
                continue
            at, shown = instance.shown.get(model, (NEVER, Shown()))
            if now - at < SHOWN_FOR:
                return shown
            try:
                said = await self._http.json("POST", f"{instance.url}/api/show", headers=self._headers, body={"model": model})
            except Failure as failure:
                self.failed(instance, failure)
                continue
            shown = _shown(said)
            instance.shown[model] = (now, shown)
            return shown
        return Shown()

    def answered(self, instance: Instance) -> None:
        """Note that it works."""
        instance.failures, instance.rest_until, instance.why = 0, NEVER, ""

    def failed(self, instance: Instance, failure: Failure) -> None:
        """Note that it does not; a server that only says no (400) is well."""
        instance.why = failure.message
        if failure.status == 404:
            instance.models, instance.models_at = (), NEVER
        if 400 <= failure.status < 500:
            return
        instance.failures += 1
        rest = 2.0 if failure.status == 503 else min(LONGEST_REST, 2.0**instance.failures)
        instance.rest_until = self._clock.monotonic() + rest
        instance.models_at = instance.loaded_at = NEVER

    async def check(self) -> list[Instance]:
        """Ask every server now and return those that answered."""
        for instance in self.instances:
            instance.models_at = NEVER
        await asyncio.wait([self._once("tags", instance, self._refresh_tags) for instance in self.instances])
        return [instance for instance in self.instances if instance.models_at != NEVER]

    async def aclose(self) -> None:
        """Stop asking."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, instances: Sequence[Instance]) -> None:
        """Ask which models there are: at once where nothing is known yet, else beside the request."""
        known = any(instance.models for instance in instances)
        stale = [instance for instance in instances if self._clock.monotonic() - instance.models_at >= TAGS_FOR]
        asked = [self._once("tags", instance, self._refresh_tags) for instance in stale]
        if asked and not known:
            await asyncio.wait(asked)  # never `gather`: a client that leaves would cancel the question for all who wait for it

    async def _look_closer(self, instances: Sequence[Instance]) -> None:
        """Ask which models are loaded, in the same way."""
        stale = [instance for instance in instances if self._clock.monotonic() - instance.loaded_at >= LOADED_FOR]
        asked = [(self._once("ps", instance, self._refresh_loaded), instance.loaded_at == NEVER) for instance in stale]
        if first := [task for task, new in asked if new]:
            await asyncio.wait(first)

    def _once(self, what: str, instance: Instance, ask: Callable[[Instance], Coroutine[None, None, None]]) -> asyncio.Task[None]:
        """Ask in a task of its own, unless it is being asked: a server that hangs must not hold up requests to the others."""
        key = (what, instance.url)
        if key not in self._asking:
            task = self._asking[key] = asyncio.ensure_future(ask(instance))
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return self._asking[key]

    def _resting(self, instance: Instance) -> bool:
        return self._clock.monotonic() < instance.rest_until

    def _living(self) -> list[Instance]:
        return [instance for instance in self.instances if not self._resting(instance)] or self.instances

    async def _refresh_tags(self, instance: Instance) -> None:
        try:
            said = await self._http.json("GET", f"{instance.url}/api/tags", headers=self._headers)
        except Failure as failure:
            self.failed(instance, failure)
            instance.models = ()
            return
        instance.models, instance.models_at = tuple(_names(said)), self._clock.monotonic()
        self.answered(instance)

    async def _refresh_loaded(self, instance: Instance) -> None:
        try:
            said = await self._http.json("GET", f"{instance.url}/api/ps", headers=self._headers)
        except Failure:
            said = {}  # an old server, or a busy one: the request itself will tell
        instance.loaded, instance.loaded_at = frozenset(_names(said)), self._clock.monotonic()


def _names(said: Any) -> list[str]:
    """Return the models that run there. Ollama also lists models it only passes on to its makers' cloud: those are not local."""
    models = said.get("models") if isinstance(said, dict) else None
    listed = [model for model in models or () if isinstance(model, dict) and model.get("name") and not model.get("remote_host")]
    return [name for name in (str(model["name"]) for model in listed) if not name.endswith((":cloud", "-cloud"))]


def _shown(said: Any) -> Shown:
    facts = said if isinstance(said, dict) else {}
    measures = facts.get("model_info")
    lengths = [
        value
        for key, value in (measures.items() if isinstance(measures, dict) else ())
        if str(key).endswith(".context_length") and isinstance(value, int)
    ]
    capabilities, details = facts.get("capabilities"), facts.get("details")
    return Shown(
        lengths[0] if lengths else 0,
        frozenset(map(str, capabilities)) if isinstance(capabilities, list) else None,
        str(details.get("family") or "") if isinstance(details, dict) else "",
    )
