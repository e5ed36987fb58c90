"""Agents, sandboxes, checks and more, by name: our own and third parties', through the same entry points.

Called by the doors (is there such a name?) and by `build.py` (load it). It constructs third-party classes; our own are
constructed by `build.py`, which knows their arguments.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from claudecluster.assembly.nearest import suggestion
from claudecluster.model.errors import Refused

GROUPS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "agents": ("agent", ("name", "check", "run")),
    "sandboxes": ("sandbox", ("kind", "overlays", "check", "create", "attach", "destroy", "names")),
    "checks": ("check", ("name", "look")),
    "planners": ("planner", ("name",)),
    "providers": ("provider", ("name",)),
    "notifiers": ("notifier", ("name",)),
}
OURS = "claudecluster"
Finder = Callable[[str], Iterable[EntryPoint]]


@lru_cache  # looking through every installed package takes tens of milliseconds
def _installed(group: str) -> Iterable[EntryPoint]:
    return tuple(entry_points(group=f"claudecluster.{group}"))


def names(group: str, find: Finder = _installed) -> dict[str, str]:
    """Return the known names of a group, each with the package that brings it."""
    return {entry.name: _package(entry) for entry in find(group)}


def known(group: str, name: str, find: Finder = _installed) -> EntryPoint:
    """Return the entry point of that name without loading it. Raises Refused with the nearest name, or when two packages claim it."""
    noun, _ = GROUPS[group]
    entries = list(find(group))
    found = {_package(entry): entry for entry in entries if entry.name == name}
    if not found:
        raise Refused(f"there is no {noun} named {name!r}", hint=suggestion(name, {entry.name for entry in entries}))
    if len(found) > 1:
        raise Refused(f"{noun} {name!r} is claimed by several packages: {', '.join(sorted(found))}", hint="uninstall all but one of them")
    return next(iter(found.values()))


def load(group: str, name: str, find: Finder = _installed) -> Any:
    """Return the class (or factory) of that name. Raises Refused for an unknown name, and for a package that does not import or fit."""
    entry = known(group, name, find)
    noun, wanted = GROUPS[group]
    try:
        loaded = entry.load()
    except Exception as error:
        raise Refused(
            f"{noun} {name!r} of package {_package(entry)} cannot be loaded: {type(error).__name__}: {error}",
            hint=f"mend or uninstall {_package(entry)}",
        ) from error
    if not callable(loaded):
        raise Refused(f"{noun} {name!r} of package {_package(entry)} is not a class", hint="its entry point must name a class or factory")
    if inspect.isclass(loaded):
        _fits(loaded, wanted, f"{noun} {name!r} of package {_package(entry)}", instance=False)
    return loaded


def ours(group: str, name: str, find: Finder = _installed) -> bool:
    """Whether the name is one of this package's own. Raises Refused as `known` does."""
    return _package(known(group, name, find)) == OURS


def make(group: str, name: str, config: Mapping[str, object], find: Finder = _installed) -> Any:
    """Return an instance of a third party's plug-in.

    It is called with `config=` (its own part of the configuration) if it takes that, else without arguments.
    Raises Refused for an unknown name and for whatever goes wrong in it.
    """
    build = load(group, name, find)
    noun, wanted = GROUPS[group]
    who = f"{noun} {name!r} of package {names(group, find)[name]}"
    try:
        made = build(config=dict(config)) if _takes_config(build) else build()
    except Exception as error:
        raise Refused(f"{who} cannot be made: {type(error).__name__}: {error}", hint="see its documentation") from error
    _fits(made, wanted, who, instance=True)
    return made


def _takes_config(build: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(build).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(parameter.name == "config" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _fits(thing: Any, wanted: Iterable[str], who: str, *, instance: bool) -> None:
    # An attribute set in __init__ shows on the instance only, so of a class just the methods can be asked for.
    missing = [name for name in wanted if not hasattr(thing, name) and (instance or name not in {"name", "kind", "overlays"})]
    if missing:
        raise Refused(f"{who} lacks {', '.join(missing)}", hint="see `claudecluster.ports` for what it promises")


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value.partition(":")[0]
