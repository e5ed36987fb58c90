"""Exit codes, and every error as two lines instead of a traceback. Called by `main.py` and `result.py`."""

import errno
import os
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from claudecluster.cli import voice
from claudecluster.cli.loading import load
from claudecluster.model.errors import ClusterError, SandboxLost, Unavailable

LANDED, FAILED, BAD_INPUT, PERSON_NEEDED, UNAVAILABLE, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 4, 70, 130
FULL = {errno.ENOSPC, errno.EDQUOT}


def guarded(work: Callable[[], int | None]) -> int:
    """Do the work and return the exit code; whatever it raises becomes an `error:` line and the code that fits."""
    try:
        code = work() or LANDED
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; there is nobody to complain to
        return LANDED
    except (KeyboardInterrupt, typer.Abort):
        voice.error("interrupted")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the outermost border: nothing passes as a traceback
        return told(error)
    return code


def told(error: BaseException) -> int:
    """Say the error in our voice and return its exit code."""
    while isinstance(error, BaseExceptionGroup):
        error = next((inner for inner in error.exceptions if isinstance(inner, ClusterError)), error.exceptions[0])
    if isinstance(error, ClusterError):
        voice.error(error.message, error.hint)
        return UNAVAILABLE if isinstance(error, Unavailable | SandboxLost) else BAD_INPUT
    if isinstance(error, typer.TyperException):
        return _misused(error)
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        fix = "free some disk space" if error.errno in FULL else f"check the path and its permissions; {_noted(error)}".rstrip("; ")
        voice.error(f"{os.strerror(error.errno)}{where}", fix)
        return UNAVAILABLE
    voice.error(f"internal: {type(error).__name__}: {error}", _noted(error) or "please report this")
    return INTERNAL


def _misused(error: Any) -> int:
    said = str(error.format_message() if hasattr(error, "format_message") else error)
    if type(error).__name__ == "NoArgsIsHelpError":
        voice.say(said)
        return BAD_INPUT
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "claudecluster"
    what, _, better = said.partition(" Did you mean")
    voice.error(what.rstrip("."), f"did you mean{better.rstrip('?')}?" if better else f"see `{command} --help`")
    return BAD_INPUT


def _noted(error: BaseException) -> str:
    """Write the traceback below the state folder; return a hint that names the file, or nothing where that cannot be."""
    try:
        home: Path = load("claudecluster.assembly.settings").load().settings.home
        file: Path = load("claudecluster.assembly.paths").crash_log(home, f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}")
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except (OSError, ClusterError):
        return ""
    return f"please report this; the details are in {file}"
