"""The one place where the command line loads modules by name, so that `--help` waits for none of them."""

from importlib import import_module
from typing import Any


def load(name: str) -> Any:
    """Return the module of that full name."""
    return import_module(name)
