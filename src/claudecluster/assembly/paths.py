"""Where things lie below the state folder. Called by the doors; makes only the folder it is asked for."""

from importlib.resources import files
from pathlib import Path


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
