from pathlib import Path

import pytest

from claudecluster.assembly.access import connect, connected, gateway_config, providers
from claudecluster.assembly.settings import Settings, load
from claudecluster.kit.clock import SystemClock
from claudecluster.limits.tracker import TIERS


def settings(home: Path, **more: str) -> Settings:
    return load(environ={"CLAUDECLUSTER_HOME": str(home), **more}).settings


def test_the_switch_is_off_until_it_is_connected(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert connected(home) is False
    assert not home.exists()
    connect(home, on=True)
    assert connected(home) is True
    connect(home, on=False)
    assert connected(home) is False


@pytest.mark.parametrize("text", ["", "[]", "{", '{"connected": "yes"}', "\udcff"])
def test_a_switch_that_makes_no_sense_is_off(tmp_path: Path, text: str) -> None:
    (tmp_path / "fallback.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert connected(tmp_path) is False


def test_a_running_gateway_hears_the_switch(tmp_path: Path) -> None:
    config = gateway_config(settings(tmp_path), SystemClock())
    assert config.connected() is False
    connect(tmp_path, on=True)
    assert config.connected() is True


def test_the_gateway_is_told_what_the_environment_says(tmp_path: Path) -> None:
    given = settings(tmp_path, CLAUDE_CODE_FALLBACK_MODE="manual", CLAUDE_CODE_FALLBACK_THRESHOLD="65", ANTHROPIC_BASE_URL="http://a")
    config = gateway_config(given, SystemClock(), replay=Path("c"))
    assert (config.fallback.mode, config.fallback.threshold) == ("manual", 0.65)
    assert (config.anthropic.base_url, config.local, config.replay) == ("http://a", (), Path("c"))


@pytest.mark.parametrize("tier", ["api", "free", "pro", "max", "max5", "max20", "teams", "enterprise"])
def test_every_tier_a_user_may_name_is_known_to_the_windows(tmp_path: Path, tier: str) -> None:
    assert gateway_config(settings(tmp_path, CLAUDE_SUBSCRIPTION_TIER=tier), SystemClock()).tier in TIERS


@pytest.mark.parametrize(
    ("env", "names"),
    [
        ({}, []),
        ({"ANTHROPIC_API_KEY": "k"}, ["anthropic"]),
        ({"ANTHROPIC_AUTH_TOKEN": "k"}, ["anthropic"]),
        ({"ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}, ["anthropic"]),
        ({"OLLAMA_BASE_URL": "http://127.0.0.1:9"}, ["ollama"]),
        ({"ANTHROPIC_API_KEY": "k", "OLLAMA_BASE_URL": "http://127.0.0.1:9"}, ["anthropic", "ollama"]),
    ],
)
def test_only_configured_providers_are_there_and_anthropic_comes_first(tmp_path: Path, env: dict[str, str], names: list[str]) -> None:
    assert [provider.name for provider in providers(settings(tmp_path, **env), SystemClock())] == names
