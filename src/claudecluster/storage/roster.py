"""The roster: which processes serve, which are dead, and who holds a lease. Made by the store, kept by the engine.

Times are the callers' own: hosts that share a store must agree on the time to well within a lease's length.
"""

import sqlalchemy as sa

from claudecluster.kit.clock import Clock
from claudecluster.model.run import WorkerRecord
from claudecluster.storage.connect import Database
from claudecluster.storage.records import WORKER, row_of, worker_of
from claudecluster.storage.tables import leases, workers

WORKERS = sa.select(*WORKER).where(sa.not_(workers.c.forgotten)).order_by(workers.c.id)
DEAD = sa.select(workers.c.dead).where(workers.c.id == sa.bindparam("worker"))
HOLDER = sa.select(leases.c.owner).where(leases.c.name == sa.bindparam("lease"))


class SqlRoster:
    """The `Roster` port."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._db = database
        self._clock = clock

    async def beat(self, worker: WorkerRecord) -> bool:
        """Say that this worker lives. False: it was declared dead and must stop at once."""
        row = row_of(worker) | {"dead": False, "forgotten": False}
        values = {name: value for name, value in row.items() if name not in {"id", "dead", "forgotten"}}
        statement = self._db.insert(workers).values(row)
        statement = statement.on_conflict_do_update(index_elements=["id"], set_=values, where=sa.not_(workers.c.dead))

        def work(connection: sa.Connection) -> bool:
            connection.execute(statement)
            return not connection.execute(DEAD, {"worker": worker.id}).scalar_one()

        return await self._db.write(work)

    async def workers(self, run: str = "") -> list[WorkerRecord]:
        """Return the workers on record (of one run)."""
        statement = WORKERS.where(workers.c.run == run) if run else WORKERS
        return await self._db.read(lambda connection: [worker_of(row) for row in connection.execute(statement)])

    async def bury(self, worker: str) -> None:
        """Declare a worker dead: its next beat answers False, its leases are free. For ever, also for one never heard of."""
        nobody = WorkerRecord(id=worker, run="", host="", pid=0, born="", seen=0.0, dead=True)
        statement = self._db.insert(workers).values(row_of(nobody) | {"forgotten": True})
        statement = statement.on_conflict_do_update(index_elements=["id"], set_={"dead": True})

        def work(connection: sa.Connection) -> None:
            connection.execute(statement)
            connection.execute(leases.delete().where(leases.c.owner == worker))

        await self._db.write(work)

    async def forget(self, worker: str) -> None:
        """Take a dead worker off the record; should it ever come back, it is still dead. Living and unknown ones are left alone."""
        statement = workers.update().where(workers.c.id == worker, workers.c.dead).values(forgotten=True)
        await self._db.write(lambda connection: connection.execute(statement).rowcount)

    async def lease(self, name: str, owner: str, seconds: float) -> bool:
        """Take or renew a lease; False while somebody else holds it, and for the dead."""
        now = self._clock.now()
        row = {"owner": owner, "until": now + seconds}
        statement = self._db.insert(leases).values(name=name, **row)
        free = sa.or_(leases.c.owner == owner, leases.c.until <= now)
        statement = statement.on_conflict_do_update(index_elements=["name"], set_=row, where=free)

        def work(connection: sa.Connection) -> bool:
            if connection.execute(DEAD, {"worker": owner}).scalar():
                return False
            connection.execute(statement)
            holder: str = connection.execute(HOLDER, {"lease": name}).scalar_one()
            return holder == owner

        return await self._db.write(work)
