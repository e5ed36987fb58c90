"""Which repository is meant: the current one, a path, or a URL. Called by the doors; whether it is one at all, git says later."""

import re
from dataclasses import dataclass
from pathlib import Path

from claudecluster.model.errors import Refused

URL = re.compile(r"[a-z][a-z0-9+.-]*://|[\w.-]+@[\w.-]+:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Where:
    """`source` is an absolute path or a URL; `folder` is the working copy, for a path."""

    source: str
    folder: Path | None


def place(repo: str) -> Where:
    """Return what `--repo` means; empty is the repository around the current folder. Raises Refused for what is not there."""
    if URL.match(repo):
        return Where(repo, None)
    if not repo:
        here = Path.cwd()
        top = next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)
        return Where(str(top), top)
    folder = Path(repo).expanduser().absolute()
    try:
        if not folder.exists():
            raise Refused(f"there is no repository at {repo}", hint="check --repo; it takes a folder or a URL")
        if not folder.is_dir():
            raise Refused(f"{repo} is a file, not a repository", hint="check --repo; it takes a folder or a URL")
    except (OSError, ValueError) as error:
        raise Refused(f"--repo cannot be used: {error}", hint="it takes a folder or a URL") from None
    return Where(str(folder.resolve()), folder)
