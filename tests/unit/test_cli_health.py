import os
from pathlib import Path

import pytest

from claudecluster.assembly.settings import Settings, load
from claudecluster.cli.show.health import Sign, signs


def settings(home: Path, **more: str) -> Settings:
    return load(environ={"CLAUDECLUSTER_HOME": str(home), "PATH": os.environ["PATH"], **more}).settings


async def look(chosen: Settings) -> dict[str, Sign]:
    return {sign.name: sign for sign in await signs(chosen)}


async def test_what_is_missing_is_a_fail_with_the_way_to_mend_it(tmp_path: Path) -> None:
    found = await look(settings(tmp_path, PATH=str(tmp_path)))
    assert {found[name].state for name in ("git", "bubblewrap")} == {"fail"}
    assert "install" in found["git"].fix
    assert "--sandbox none" in found["bubblewrap"].fix
    assert found["ssh-keygen"].state == "warn"


@pytest.mark.parametrize(
    ("said", "state"), [("git version 2.37.9", "fail"), ("git version 2.38.0", "ok"), ("git version 2.47.1 (Apple Git)", "ok")]
)
async def test_a_git_that_is_too_old_is_said_to_be(tmp_path: Path, said: str, state: str) -> None:
    git = tmp_path / "git"
    git.write_text(f"#!/bin/sh\necho '{said}'\n")
    git.chmod(0o755)
    assert (await look(settings(tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")))["git"].state == state


async def test_a_state_folder_that_cannot_be_made_is_a_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = (await look(settings(tmp_path / "file" / "home")))["state folder"]
    assert found.state == "fail"
    assert "CLAUDECLUSTER_HOME" in found.fix


async def test_looking_makes_nothing(tmp_path: Path) -> None:
    await look(settings(tmp_path / "home"))
    assert list(tmp_path.iterdir()) == []


async def test_model_access_is_told_without_its_secret(tmp_path: Path) -> None:
    assert (await look(settings(tmp_path)))["model access"].state == "warn"
    sign = (await look(settings(tmp_path, ANTHROPIC_API_KEY="sk-secret", OLLAMA_BASE_URL="http://a,http://b")))["model access"]
    assert (sign.state, sign.seen) == ("ok", "Anthropic by key, 2 Ollama")


async def test_a_configuration_that_others_can_read_is_warned_about(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "config.toml").chmod(0o644)
    assert "chmod 600" in (await look(settings(tmp_path)))["config.toml"].fix
    (tmp_path / "config.toml").chmod(0o600)
    assert "config.toml" not in await look(settings(tmp_path))
