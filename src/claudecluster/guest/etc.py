"""Puts together the /etc every guest sees: invented files, and copies of the harmless pieces of the host's. Called by `launch`, once."""

import os
import shutil
import stat
from collections.abc import Mapping
from typing import Any

from claudecluster.guest import linux, stage

_LARGEST = 8 << 20  # bytes of one file


def prepare(wanted: Mapping[str, Any]) -> None:
    """Fill the folder that becomes /etc: `copies` are names under the host's /etc, `files` texts, `links` symlinks. Only what everybody may read is copied."""
    linux.mount("tmpfs", stage.ETC, "tmpfs", options="mode=755,size=64m")
    for name in wanted["copies"]:
        _copy(f"{stage.HOST}/etc/{name}", f"{stage.ETC}/{name}")
    for name, text in wanted["files"].items():
        with open(f"{stage.ETC}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    for name, target in wanted["links"].items():
        os.symlink(target, f"{stage.ETC}/{name}")
    linux.harden(stage.ETC, readonly=True)


def _copy(source: str, target: str) -> None:
    try:
        found = os.lstat(source)
    except OSError:
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_IROTH:
        os.makedirs(target, exist_ok=True)
        for entry in os.listdir(source):
            _copy(f"{source}/{entry}", f"{target}/{entry}")
    elif stat.S_ISREG(found.st_mode) and found.st_mode & stat.S_IROTH and found.st_size <= _LARGEST:
        shutil.copyfile(source, target)
