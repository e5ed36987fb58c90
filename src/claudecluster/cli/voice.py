"""How the command line speaks: data on stdout, talk on stderr, readable without colour. Called by every command."""

import contextlib
import os
import re
import shlex
import shutil
import sys
from functools import cache
from typing import Any

from claudecluster.cli.loading import load

OUR_COMMAND = re.compile(r"(?<![\w./-])claudecluster (?=[a-z-])")


def data(text: str) -> None:
    """Write what was asked for to stdout. A reader that has left is fine: the exit code still tells how it went."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def as_json(value: Any) -> None:
    """Write one JSON object to stdout."""
    orjson = load("orjson")  # the standard library's indented writer takes seconds for 10,000 tasks
    try:
        data(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
    except TypeError:  # a path that is not UTF-8: escaped, as only the standard library does it
        data(load("json").dumps(value, indent=2))


def say(text: str) -> None:
    """Talk to the person at the terminal. Where nobody can hear it (a closed pipe, a full disk, a lost terminal) the work goes on."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def hint(text: str) -> None:
    """Say what to do next. Commands of ours in it are as the user has to type them."""
    if text:
        say(f"hint: {OUR_COMMAND.sub(lambda _: f'{typed()} ', one_line(text))}")


@cache
def typed() -> str:
    """Return our command as it can be typed here: by its name where that is on PATH, else as it was called this time."""
    if shutil.which("claudecluster"):
        return "claudecluster"
    if sys.argv[0].endswith("__main__.py"):
        return shlex.join([sys.executable, "-m", "claudecluster.cli"])
    return shlex.quote(sys.argv[0])


def warn(text: str) -> None:
    """Say what may surprise."""
    say(f"warning: {one_line(text)}")


def error(what: str, next_step: str = "") -> None:
    """Say what went wrong and why in one line, and what to do next in another."""
    say(f"error: {one_line(what)}")
    hint(next_step)


def one_line(text: str) -> str:
    """Return the text on one line, without control characters a terminal would obey."""
    return " ".join(clean(text).split())


def clean(text: str) -> str:
    """Return the text without control characters other than tab and newline: agents' output must not steer a terminal."""
    text = text.encode("utf-8", "replace").decode() if any("\ud800" <= character <= "\udfff" for character in text) else text
    return "".join(character for character in text if character.isprintable() or character in "\t\n")


def interactive() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stderr.isatty()
