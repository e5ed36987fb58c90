"""Connections to SQLite or PostgreSQL, and the few threads that talk to them. Used by the store and the roster.

SQLite runs with a write-ahead log and `synchronous=NORMAL`: a transaction that was acknowledged survives the death of any
process at any moment. A power cut may take the last few commits with it, never the file's soundness (sqlite.org/wal.html);
`FULL` would cost an fsync a commit, several milliseconds on a laptop's disk, for work whose commits git keeps anyway.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from claudecluster.kit.clock import Clock
from claudecluster.model.errors import NotFound, Refused, Unavailable
from claudecluster.storage.failures import passing, translated, unwritable

T = TypeVar("T")
PATIENCE = 30_000  # milliseconds SQLite waits for another writer
SLICE = 5  # milliseconds it waits on its own at a time
PAUSES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # between tries after a passing failure
NO_RUNS = "there are no runs yet"


class Database:
    """One database. Work runs in threads of its own, a transaction each: reads side by side, and on SQLite one write at a time."""

    def __init__(self, url: str, *, clock: Clock, readonly: bool = False) -> None:
        self.url = parsed(url)
        self.where = self.url.database or "" if self.is_sqlite else self.url.render_as_string(hide_password=True)
        self.readonly = readonly
        self._clock = clock
        if self.is_sqlite:
            self._reading, self._writing = _sqlite_engines(Path(self.where), readonly=readonly)
        else:
            self._reading = self._writing = _postgres_engine(self.url)
        self._readers = ThreadPoolExecutor(2, "store-read")
        self._writers = ThreadPoolExecutor(1 if self.is_sqlite else 3, "store-write")
        self.insert: Callable[[sa.Table], sqlite.Insert] = import_module(f"sqlalchemy.dialects.{self.url.get_backend_name()}").insert
        self.closed = False

    @property
    def is_sqlite(self) -> bool:
        """Whether this is a file of ours rather than a server."""
        return self.url.get_backend_name() == "sqlite"

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Return what `work` returns on one consistent view."""
        return await self._patiently(self._readers, self._reading, work)

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Commit what `work` does and return what it returns. It may run again from the start, on a clean slate."""
        if self.readonly:
            raise Refused(f"the store at {self.where} was opened for reading only")
        return await self._patiently(self._writers, self._writing, work)

    async def compute(self, work: Callable[[], T]) -> T:
        """Run something slow beside the event loop."""
        return await self._hop(self._readers, work)

    async def close(self) -> None:
        """Finish what was begun and let go of the file or server. Later calls are Unavailable."""
        self.closed = True
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writers.shutdown()
        self._readers.shutdown()
        self._writing.dispose()
        self._reading.dispose()

    async def _patiently(self, lane: Executor, engine: sa.Engine, work: Callable[[sa.Connection], T]) -> T:
        for pause in PAUSES:
            try:
                return await self._hop(lane, lambda: _transact(engine, work))
            except _Cut:
                pass
            except DBAPIError as error:
                if not passing(error):
                    raise translated(error, self.where) from error
            except SQLAlchemyError as error:
                raise translated(error, self.where) from error
            await self._clock.sleep(pause)
        try:
            return await self._hop(lane, lambda: _transact(engine, work))
        except _Cut as error:
            raise translated(error.cause, self.where) from error
        except SQLAlchemyError as error:
            raise translated(error, self.where) from error

    async def _hop(self, lane: Executor, work: Callable[[], T]) -> T:
        if self.closed:
            raise Unavailable(f"the store at {self.where} was closed")
        return await asyncio.get_running_loop().run_in_executor(lane, work)


class _Cut(Exception):
    """The server hung up before we asked it to commit: nothing was written."""

    def __init__(self, cause: DBAPIError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def parsed(url: str) -> sa.URL:
    """Return the URL with the driver we use. Raises Refused for what is no store."""
    try:
        made = sa.make_url(url)
    except ArgumentError as error:
        raise Refused("the store's URL cannot be read", hint="use sqlite:///PATH or postgresql://USER@HOST/NAME") from error
    if made.drivername in {"postgres", "postgresql"}:
        made = made.set(drivername="postgresql+psycopg")
    if made.drivername not in {"sqlite", "sqlite+pysqlite", "postgresql+psycopg"}:
        raise Refused(f"the store cannot be kept in {made.drivername!r}", hint="use sqlite:///PATH or postgresql://USER@HOST/NAME")
    if made.get_backend_name() == "sqlite" and made.database in {None, "", ":memory:"}:
        raise Refused("the store needs a file: memory forgets", hint="use sqlite:///PATH")
    return made


def _transact(engine: sa.Engine, work: Callable[[sa.Connection], T]) -> T:
    try:
        with engine.connect() as connection, connection.begin() as transaction:
            try:
                result = work(connection)
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise _Cut(error) from error
                raise
            transaction.commit()
            return result
    except DBAPIError as error:
        if error.connection_invalidated and not isinstance(error.orig, sqlite3.Error):
            where = engine.url.render_as_string(hide_password=True)
            message = f"the database at {where} hung up while it was told to commit"
            raise Unavailable(message, hint="it may or may not have been written: the same step can be repeated", delay=1.0) from error
        raise


def _sqlite_engines(path: Path, *, readonly: bool) -> tuple[sa.Engine, sa.Engine]:
    if readonly:
        if not path.exists():
            raise NotFound(NO_RUNS, hint="start one with `claudecluster run`")
    else:
        _touch(path)
    mode = "ro" if readonly else "rw"
    reading = _sqlite_engine(path, mode, "BEGIN")
    return reading, reading if readonly else _sqlite_engine(path, mode, "BEGIN IMMEDIATE")


def _touch(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # prompts and outputs are nobody else's
    except OSError as error:
        raise unwritable(error, str(path)) from error


def _sqlite_engine(path: Path, mode: str, begin: str) -> sa.Engine:
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
    if mode == "ro" and not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists():
        uri += "&immutable=1"  # a closed store on a read-only disk: there is no room for the log's index, and no need of it

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(uri, uri=True, timeout=PATIENCE / 1000, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA foreign_keys=ON")
            if begin != "BEGIN":
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute(f"PRAGMA busy_timeout={SLICE}")
        except BaseException:
            connection.close()
            raise
        return connection

    engine = sa.create_engine(f"sqlite:///{path}", creator=connect, poolclass=QueuePool, pool_size=2, max_overflow=0)

    @sa.event.listens_for(engine, "begin")
    def _(connection: sa.Connection) -> None:
        if begin == "BEGIN" or not _locked(connection):
            connection.exec_driver_sql(begin)  # the driver's own guess would take the lock too late

    return engine


def _locked(connection: sa.Connection) -> bool:
    """Take the writers' lock; False if it stayed taken.

    SQLite asks for a taken lock less and less often, up to 100 ms apart. Among transactions of half a millisecond that is the
    slowest part of all, so we let it wait a few milliseconds only and ask again: the worst wait of four processes that write fell from 278 to 55 ms.
    """
    driver = connection.connection.driver_connection
    for _ in range(PATIENCE // SLICE - 1):
        try:
            driver.execute("BEGIN IMMEDIATE")  # type: ignore[union-attr]  # the pool's type says any driver or none
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                return False
        else:
            return True
    return False


def _postgres_engine(url: sa.URL) -> sa.Engine:
    settings: dict[str, Any] = {"connect_timeout": 10, "application_name": "claudecluster"}
    try:
        return sa.create_engine(url, pool_size=5, max_overflow=0, pool_pre_ping=True, connect_args=settings)
    except ImportError as error:
        raise Unavailable("the PostgreSQL driver is not installed", hint="pip install 'claudecluster[postgres]'") from error
