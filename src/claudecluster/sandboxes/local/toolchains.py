"""Finds what the programs on a PATH need in order to run, and nothing more of the folders they lie in. Called by `process`; reads the file system only.

A program may be a link into an installation (pyenv, uv, pipx, nvm), a proxy for one (rustup), or a script whose first line names an interpreter there. Each installation
is shown whole and read-only; a home folder, or any folder above one, never is. Where no installation is recognised only the program's own file or folder is shown.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from claudecluster.sandboxes.local.system import SYSTEM_FOLDERS, Part

_ENTRIES_LOOKED_AT = 4000
# what marks the top of an installation, relative to it: Python, node, conda, Homebrew, Go, Rust, Java, Ruby
_MARKS = (
    "pyvenv.cfg", "lib/python3*/os.py", "lib/python2*/os.py", "lib/node_modules/npm", "conda-meta", "Cellar", "pkg/tool", "lib/rustlib", "jmods", "lib/ruby",
)  # fmt: skip
_PYENV = ("versions", "shims", "bin", "libexec", "plugins", "completions", "pyenv.d", "version")
_RUSTUP = ("toolchains", "settings.toml", "update-hashes")


@dataclass(frozen=True, slots=True)
class Toolchains:
    """What to show: read-only pieces, the PATH inside, and variables that tell programs where their installation is."""

    parts: tuple[Part, ...]
    path: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


def find(path: str, home: Path, extra: tuple[Path, ...] = ()) -> Toolchains:
    """Work out what the programs on `path` need. `home` and what is above it are never shown; `extra` is shown as it is."""
    search = _Search(home.resolve())
    for folder in dict.fromkeys(path.split(":")):
        if folder.startswith("/"):
            search.look_in(Path(folder))
    for shown in extra:
        search.show(shown.resolve(), at=shown)
    return Toolchains(tuple(search.outermost()), tuple(dict.fromkeys(search.path)), search.env)


def interpreter_of(venv: Path, home: Path) -> tuple[Part, ...]:
    """Return what a virtual environment needs besides itself: the installation its `pyvenv.cfg` names, if it really is a Python's."""
    search = _Search(home.resolve())
    search.base_of(venv)
    return tuple(search.outermost())


def in_system(path: Path) -> bool:
    """Tell whether every sandbox sees this anyway."""
    return any(path.is_relative_to(folder) for folder in SYSTEM_FOLDERS)


class _Search:
    def __init__(self, home: Path) -> None:
        self._home = home
        self._shown: dict[str, Part] = {}
        self._known: set[Path] = set()
        self.path: list[str] = []
        self.env: dict[str, str] = {}

    def outermost(self) -> Iterator[Part]:
        """Yield what was found, without what lies inside another piece."""
        for at, part in sorted(self._shown.items()):
            if not any(above != at and Path(at).is_relative_to(above) for above in self._shown):
                yield part

    def show(self, source: Path, at: Path | None = None) -> bool:
        """Add a piece unless it would show a home folder, or is there already."""
        if self._home.is_relative_to(source) or source == Path("/") or source.parent == Path("/home"):
            return False
        if source.exists() and not in_system(source):
            place = str(at or source)
            self._shown[place] = Part(source, place)
        return True

    def look_in(self, folder: Path) -> None:
        """Add one folder of a PATH."""
        try:
            real = folder.resolve(strict=True)
            entries = list(os.scandir(real))[:_ENTRIES_LOOKED_AT]
        except OSError:
            return
        if not in_system(real) and not self._show_installation(real) and not self.show(real):
            return
        self.path.append(str(folder if in_system(folder) else real))
        for entry in entries:
            if entry.is_symlink():
                self._program(Path(entry.path))
            elif not in_system(real):
                self._script(Path(entry.path))

    def base_of(self, venv: Path) -> None:
        """Add the installation a virtual environment was made from."""
        with contextlib.suppress(OSError, ValueError):
            for line in (venv / "pyvenv.cfg").read_text().splitlines():
                key, _, value = line.partition("=")
                if key.strip() == "home":
                    base = Path(value.strip())
                    if base.is_absolute() and not in_system(base.resolve()):
                        self._alias(base)
                        self._top_with_mark(base.resolve())

    def _alias(self, binaries: Path) -> None:
        """Show an installation also under the name it is called by, when a link stands above it (uv names minor versions so)."""
        top, real = binaries.parent, binaries.resolve().parent
        if top != real and _marked(real):
            self.show(real, at=top)

    def _program(self, program: Path) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            real = program.resolve(strict=True)
            if not in_system(real) and real.is_file() and not self._top_with_mark(real.parent):
                self.show(real)

    def _script(self, script: Path) -> None:
        with contextlib.suppress(OSError):
            with script.open("rb") as file:
                first = file.readline(512)
            if first.startswith(b"#!/"):
                interpreter = Path(os.fsdecode(first[2:].split()[0]))
                if not in_system(interpreter):
                    self._top_with_mark(interpreter.parent)
                    self._program(interpreter)

    def _top_with_mark(self, folder: Path) -> bool:
        """Show the nearest installation around a folder."""
        return any(self._show_installation(candidate / "bin") for candidate in (folder, *folder.parents) if candidate != Path("/"))

    def _show_installation(self, binaries: Path) -> bool:
        top = binaries.parent
        if top in self._known:
            return True
        found = self._show_pyenv(top) or self._show_rustup(binaries) or (_marked(top) and self.show(top))
        if found:
            self._known.add(top)
            if (top / "pyvenv.cfg").exists():
                self.base_of(top)
        return found

    def _show_pyenv(self, top: Path) -> bool:
        for root in (top, *top.parents):  # shims and plugins lie at different depths
            if (root / "libexec" / "pyenv").exists() and (root / "versions").is_dir() and top not in (root / "versions").glob("*"):
                for name in _PYENV:
                    self.show(root / name)
                self.env["PYENV_ROOT"] = str(root)
                return True
        return False

    def _show_rustup(self, binaries: Path) -> bool:
        rustup = binaries.parent.parent / ".rustup"
        if not (binaries / "rustup").exists() or not rustup.is_dir():
            return False
        for name in _RUSTUP:
            self.show(rustup / name)
        self.env["RUSTUP_HOME"] = str(rustup)
        return self.show(binaries)


def _marked(top: Path) -> bool:
    return any(next(top.glob(mark), None) for mark in _MARKS)
