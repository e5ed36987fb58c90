from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from claudecluster.assembly import plugins
from claudecluster.model.errors import Refused
from claudecluster.ports.agent import Agent
from claudecluster.ports.check import Check
from claudecluster.ports.sandbox import SandboxProvider

MODULE = """
class Good:
    name = "good"
    async def look(self, sandbox, evidence): ...

class Configured(Good):
    def __init__(self, config):
        self.config = config

class Late:
    def __init__(self):
        self.name = "late"
    async def look(self, sandbox, evidence): ...

class Lacking:
    name = "lacking"

class Nameless:
    async def look(self, sandbox, evidence): ...

class Exploding(Good):
    def __init__(self):
        raise RuntimeError("no licence")

def factory():
    return Good()

THING = 5
"""


@pytest.fixture
def find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> plugins.Finder:
    """Return what finds the plug-ins of a module that stands on the path, one for each of its names."""
    (tmp_path / "some_plugins.py").write_text(MODULE)
    (tmp_path / "broken_plugins.py").write_text("import nothing_of_that_name")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("Good", "Configured", "Late", "Lacking", "Nameless", "Exploding", "factory", "THING", "Missing")
    entries = [EntryPoint(name.lower(), f"some_plugins:{name}", "claudecluster.checks") for name in names]
    entries += [EntryPoint("broken", "broken_plugins:X", "claudecluster.checks")]
    entries += [EntryPoint("twice", f"{package}_plugins:X", "claudecluster.checks") for package in ("some", "other")]

    def found(group: str) -> Iterable[EntryPoint]:
        return entries if group == "checks" else []

    return found


def test_our_own_agents_and_sandboxes_are_found_like_anybody_elses() -> None:
    assert plugins.names("agents") == {"claude-code": "claudecluster", "command": "claudecluster"}
    assert plugins.names("sandboxes") == {"process": "claudecluster", "none": "claudecluster"}
    assert plugins.ours("agents", "command")
    assert plugins.names("agents").keys() == {entry.name for entry in entry_points(group="claudecluster.agents")}


@pytest.mark.parametrize(("group", "port"), [("agents", Agent), ("sandboxes", SandboxProvider), ("checks", Check)])
def test_what_is_asked_of_a_plug_in_is_what_its_port_promises(group: str, port: Any) -> None:
    assert get_type_hints(port) is not None
    promised = {name for name in vars(port) if not name.startswith("_")}
    assert set(plugins.GROUPS[group][1]) == promised


def test_an_unknown_name_is_refused_with_the_nearest_and_all_known(find: plugins.Finder) -> None:
    with pytest.raises(Refused, match="no check named 'god'") as refused:
        plugins.known("checks", "god", find)
    assert "`good`" in refused.value.hint
    assert "lacking" in refused.value.hint
    with pytest.raises(Refused) as refused:
        plugins.known("notifiers", "x", find)
    assert refused.value.hint == "none are installed"


def test_a_name_is_looked_up_without_importing_anything(find: plugins.Finder) -> None:
    assert plugins.known("checks", "broken", find).value == "broken_plugins:X"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "package broken_plugins cannot be loaded: ModuleNotFoundError"),
        ("missing", "package some_plugins cannot be loaded: AttributeError"),
        ("lacking", "package some_plugins lacks look"),
        ("thing", "package some_plugins is not a class"),
        ("twice", "claimed by several packages: other_plugins, some_plugins"),
    ],
)
def test_a_broken_plug_in_is_one_line_that_names_its_package(find: plugins.Finder, name: str, said: str) -> None:
    with pytest.raises(Refused) as refused:
        plugins.load("checks", name, find)
    assert said in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize(("name", "said"), [("exploding", "cannot be made: RuntimeError: no licence"), ("nameless", "lacks name")])
def test_a_plug_in_that_cannot_be_made_is_one_line_that_names_its_package(find: plugins.Finder, name: str, said: str) -> None:
    with pytest.raises(Refused) as refused:
        plugins.make("checks", name, {}, find)
    assert said in refused.value.message
    assert "some_plugins" in refused.value.message


@pytest.mark.parametrize("name", ["good", "late", "factory"])
def test_a_plug_in_is_made_without_arguments(find: plugins.Finder, name: str) -> None:
    assert plugins.make("checks", name, {"a": 1}, find).name in {"good", "late"}


def test_a_plug_in_that_takes_config_gets_its_own(find: plugins.Finder) -> None:
    assert plugins.make("checks", "configured", {"a": 1}, find).config == {"a": 1}
