"""Where things lie: below the state folder, in the package, and the repository that is meant. Called by the doors.

Makes only the folders it is asked for. Whether a place is a repository at all, git says later.
"""

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from claudecluster.model.errors import Refused

URL = re.compile(r"[a-z][a-z0-9+.-]*://|[\w.-]+@[\w.-]+:", re.IGNORECASE)


def crash_log(home: Path, stamp: str) -> Path:
    """Return where an unexpected error is written down, its folder made."""
    return _file(home / "log", f"crash-{stamp}.log")


def server_log(home: Path, run: str) -> Path:
    """Return where a detached server of a run writes, its folder made."""
    return _file(home / "log", f"run-{run}.log")


def config_file(home: Path) -> Path:
    """Return the user's own configuration file, which need not exist."""
    return home / "config.toml"


def examples() -> Path | None:
    """Return the folder of the numbered examples: beside a source checkout, else inside the installed package."""
    package = Path(str(files("claudecluster")))
    for folder in (package.parent.parent / "examples", package / "examples"):
        if folder.is_dir() and any(folder.glob("[0-9][0-9]-*")):
            return folder
    return None


def _file(folder: Path, name: str) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / name


@dataclass(frozen=True, slots=True)
class Where:
    """`source` is an absolute path or a URL; `folder` is the working copy, for a path."""

    source: str
    folder: Path | None


def place(repo: str) -> Where:
    """Return what `--repo` means; empty is the repository around the current folder. Raises Refused for what is not there."""
    if URL.match(repo):
        return Where(repo, None)
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise Refused("the current folder is gone", hint="change to one that exists") from None
    top = next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)
    folder = Path(repo).expanduser().absolute() if repo else top
    try:
        str(folder.resolve()).encode()
        if not folder.exists():
            raise Refused(f"there is no repository at {repo}", hint="check --repo; it takes a folder or a URL")
        if not folder.is_dir():
            raise Refused(f"{repo} is a file, not a repository", hint="check --repo; it takes a folder or a URL")
    except UnicodeEncodeError:
        raise Refused("the repository's path is not UTF-8 text", hint="rename the folder, or work on a clone elsewhere") from None
    except (OSError, ValueError) as error:
        raise Refused(f"--repo cannot be used: {error}", hint="it takes a folder or a URL") from None
    return Where(str(folder.resolve()), folder)
