"""The border to the database: foreign exceptions become ours here, once, with a line on what to do next.

Used by `connect.py` alone.
"""

import errno
import sqlite3

from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError

from claudecluster.model.errors import ClusterError, Unavailable

BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
ROLLED_BACK = {"40001", "40P01", "55P03"}  # PostgreSQL: serialization failure, deadlock, lock not available
NO_TABLE = "42P01"
NO_SPACE = "53100"


def passing(error: DBAPIError) -> bool:
    """Tell whether the transaction was rolled back for certain, for a cause that passes: try it again."""
    return _sqlite(error) in BUSY or _postgres(error) in ROLLED_BACK


def no_table(error: DBAPIError) -> bool:
    """Tell whether it failed because a table is not there."""
    return _postgres(error) == NO_TABLE or (_sqlite(error) == sqlite3.SQLITE_ERROR and "no such table" in str(error.orig))


def translated(error: SQLAlchemyError, where: str) -> ClusterError:
    """Return what a caller can act on. `where` names the database without its password."""
    if isinstance(error, StatementError) and isinstance(error.orig, ClusterError):
        return error.orig  # a value of ours that cannot be a column's
    if not isinstance(error, DBAPIError):
        return Unavailable(f"the store at {where} cannot be used: {_line(error)}")
    if isinstance(error.orig, sqlite3.Error):
        return _of_sqlite(_sqlite(error), _line(error.orig), where)
    if _postgres(error) == NO_SPACE:
        return Unavailable(f"the disk of the database at {where} is full", hint="free some space, then resume")
    hint = "check that the server is up and that the URL, user and password are right; what was stored is safe"
    return Unavailable(f"the database at {where} does not answer: {_line(error.orig or error)}", hint=hint, delay=1.0)


def unwritable(error: OSError, where: str) -> Unavailable:
    """Return what it means that a file or folder of the store could not be made."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return _full(where)
    reason = (error.strerror or str(error)).lower()
    return Unavailable(f"the store at {where} cannot be opened: {reason}", hint="choose a folder you may write to with CLAUDECLUSTER_HOME")


def _full(where: str) -> Unavailable:
    return Unavailable(f"the disk is full: {where} cannot grow", hint="free some space, then resume: nothing stored is lost")


def _of_sqlite(code: int, line: str, where: str) -> Unavailable:
    if code in BUSY:
        hint = "see whether another program holds the file open for long"
        return Unavailable(f"the store at {where} stayed locked by another process", hint=hint, delay=1.0)
    if code in DAMAGED:
        hint = "restore a snapshot, or move the file away to begin anew; landed work is safe in the repositories"
        return Unavailable(f"the store at {where} is damaged or not a database: {line}", hint=hint)
    if code == sqlite3.SQLITE_FULL:
        return _full(where)
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}:
        hint = "check that you may read and write the file and its folder, or choose another with CLAUDECLUSTER_HOME"
        return Unavailable(f"the store at {where} cannot be opened: {line}", hint=hint)
    return Unavailable(f"the store at {where} cannot be used: {line}", hint="check the disk it is on")


def _sqlite(error: DBAPIError) -> int:
    # The low byte is the kind; the rest says more than we act on. 0 is not an SQLite error.
    return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF


def _postgres(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
