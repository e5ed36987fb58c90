from pathlib import Path

import pytest

from claudecluster.assembly.paths import examples, place
from claudecluster.model.errors import Refused


@pytest.mark.parametrize("url", ["https://host/a.git", "ssh://git@host/a", "git@host.example:group/a.git", "file:///tmp/a"])
def test_a_url_stays_as_it_is(url: str) -> None:
    assert (place(url).source, place(url).folder) == (url, None)


def test_without_a_name_it_is_the_repository_around_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    (tmp_path / "repo" / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "repo" / "deep" / "er")
    assert place("").source == str(tmp_path / "repo")


def test_a_relative_path_becomes_absolute_and_links_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "link").symlink_to("repo")
    monkeypatch.chdir(tmp_path)
    assert place("link").source == str(tmp_path / "repo")


@pytest.mark.parametrize("name", ["none", "file", "a\0b"])
def test_what_is_no_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused) as refused:
        place(name)
    assert refused.value.hint


def test_a_path_that_is_not_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a\udcff"
    folder.mkdir()
    with pytest.raises(Refused, match="not UTF-8"):
        place(str(folder))
    monkeypatch.chdir(folder)
    with pytest.raises(Refused, match="not UTF-8"):
        place("")


def test_the_first_example_has_all_the_demo_needs() -> None:
    folder = examples()
    assert folder is not None
    first = min(folder.glob("01-*"))
    assert {"tasks.yaml", "scenario.yaml"} <= {path.name for path in first.iterdir()}
