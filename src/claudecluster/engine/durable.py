"""DBOS behind one door: starting it, queues, and taking over what a dead process left. Nobody else imports `dbos` but the flows.

The rules come from measuring DBOS 3.4: a constant application version (else work of an older program is never dequeued), an executor id that no
two processes share (else both run the same step), what is taken over goes through a queue of ours (the internal one is polled by every process).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig, SetWorkflowID
from dbos import error as dbos_error
from dbos._serialization import DBOSPortableJSONSerializer

from claudecluster.model.errors import Unavailable

APP = "claudecluster"
VERSION = "1"
THREADS = 16
POLL = 0.25  # seconds between looks at the queue that takes over from the dead, and for messages

Flow = Callable[..., Coroutine[Any, Any, Any]]


class Durable:
    """One process's part in the durable engine. Start it once, stop it once."""

    def __init__(self, url: str, executor: str) -> None:
        self.url = url
        self.executor = executor
        self._stopped = False

    def register(self, flows: Mapping[str, Flow]) -> None:
        """Name the workflows. Before `start`."""
        logging.getLogger("dbos").setLevel(logging.CRITICAL)
        config: DBOSConfig = {
            "name": APP,
            "system_database_url": self.url,
            "application_version": VERSION,
            "executor_id": self.executor,
            "max_executor_threads": THREADS,
            "log_level": "CRITICAL",
            "serializer": DBOSPortableJSONSerializer(),
            "notification_listener_polling_interval_sec": POLL,
            "scheduler_polling_interval_sec": 3600.0,
        }
        engine = database(self.url)
        sa.event.listen(engine, "checkout", self._refuse_when_stopped)
        config["system_database_engine"] = engine
        DBOS(config=config)
        for name, flow in flows.items():
            DBOS.workflow(name=name, max_recovery_attempts=None)(flow)

    async def start(self, queue: str) -> None:
        """Serve this queue and no other. Raises Unavailable."""
        try:
            await asyncio.to_thread(self._announce, queue)  # known before launch, a queue is served at once, not after a second
            DBOS.listen_queues([queue])
            DBOS.launch()
        except sa.exc.DBAPIError as error:
            raise Unavailable(
                f"the engine's tables cannot be used: {error.orig}", hint="free some disk space, or check the database"
            ) from error

    def _announce(self, queue: str) -> None:
        DBOS.migrate(self.url)
        client = DBOSClient(system_database_url=self.url, system_database_engine=database(self.url))
        try:
            client.register_queue(queue, polling_interval_sec=POLL)
        finally:
            client.destroy()

    async def take_over(self, dead: str, otherwise: str) -> int:
        """Restart what a dead executor was running on its own queues, or on queue `otherwise`. Returns how many; idempotent."""
        pending = await DBOS.list_workflows_async(executor_id=dead, status="PENDING", load_input=False, load_output=False)
        for found in pending:
            await DBOS.resume_workflow_async(found.workflow_id, queue_name=found.queue_name or otherwise)
        return len(pending)

    def _refuse_when_stopped(self, *_: object) -> None:
        """Keep workflows that are torn down with the event loop from writing that they failed: they go on in another process."""
        if self._stopped:
            raise RuntimeError("the engine has stopped")

    async def stop(self) -> None:
        """Stop serving. Workflows that still run are left as they are, for whoever comes next."""
        if not self._stopped:
            self._stopped = True
            await asyncio.to_thread(DBOS.destroy, destroy_registry=True, workflow_completion_timeout_sec=0)
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))  # DBOS took the loop's and shut it down


def database(url: str) -> sa.Engine:
    """Return an engine for DBOS's own tables: SQLite with write-ahead logging, or PostgreSQL."""
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_size=20, pool_pre_ping=True)
    engine = sa.create_engine(url)

    @sa.event.listens_for(engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        connection.isolation_level = "IMMEDIATE"
        for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=NORMAL"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


async def begin(workflow: str, flow: Flow, *args: object) -> None:
    """Start a workflow here and now under its id; one that was begun before is left alone."""
    with SetWorkflowID(workflow):
        await DBOS.start_workflow_async(flow, *args)


async def step(name: str, action: Callable[..., Coroutine[Any, Any, Any]], *args: object) -> Any:
    """Run a side effect; once its result is recorded it is not run again, until then it may be."""
    return await DBOS.run_step_async({"name": name}, action, *args)


async def receive(topic: str, timeout: float) -> Any:
    """Wait for a message; None after `timeout` seconds."""
    return await DBOS.recv_async(topic, timeout_seconds=timeout)


async def send(workflow: str, message: object, topic: str) -> None:
    """Send a workflow a message; one that is gone is fine."""
    with contextlib.suppress(dbos_error.DBOSNonExistentWorkflowError):
        await DBOS.send_async(workflow, message, topic)
