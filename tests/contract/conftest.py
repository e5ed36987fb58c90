"""A PostgreSQL server of our own, on a Unix socket in a temporary folder. Tests that need one are skipped where it is not installed."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PATIENCE = 60.0


def _binaries() -> Path | None:
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name.partition(".")[0]))
    on_path = shutil.which("initdb")
    folders = [*reversed(installed), *([Path(on_path).resolve().parent] if on_path else [])]
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


def _owner() -> str | None:
    # The server refuses to run as root.
    return "postgres" if os.geteuid() == 0 else None


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Yield the socket folder of a running server."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg")
    owner = _owner()
    folder = Path(tempfile.mkdtemp(prefix="ccpg"))
    try:
        if owner:
            try:
                entry = pwd.getpwnam(owner)
            except KeyError:
                pytest.skip("there is no user to run PostgreSQL as")
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        data = folder / "data"
        who: dict[str, object] = {"user": owner, "group": pwd.getpwnam(owner).pw_gid, "extra_groups": []} if owner else {}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
        initdb = [binaries / "initdb", "-D", data, "-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run(initdb, check=True, timeout=PATIENCE, **quiet, **who)
        dies_with_us = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off", "-c", "shared_buffers=32MB"]
        server = subprocess.Popen([*dies_with_us, binaries / "postgres", "-D", data, *options], **quiet, **who)
        try:
            _wait_for(folder, server)
            yield str(folder)
        finally:
            server.send_signal(signal.SIGINT)  # fast shutdown
            server.wait(PATIENCE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(folder: Path, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert server.poll() is None, "PostgreSQL did not start"
        try:
            _sql(str(folder), "SELECT 1")
        except Exception:  # noqa: BLE001 - the driver is optional, so its errors have no name here
            time.sleep(0.05)
        else:
            return
    pytest.fail("PostgreSQL did not come up")


def _sql(folder: str, statement: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(host=folder, user="tester", dbname="postgres", autocommit=True) as connection:
        connection.execute(statement)


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """Yield the URL of a fresh database."""
    name = f"t{uuid.uuid4().hex[:12]}"
    _sql(postgres_server, f"CREATE DATABASE {name}")
    yield f"postgresql://tester@/{name}?host={postgres_server}"
    _sql(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres_sql(postgres_server: str) -> Callable[[str], None]:
    """Run a statement as the server's owner."""
    return lambda statement: _sql(postgres_server, statement)
