import stat
from pathlib import Path

import pytest

from claudecluster.assembly.settings import FROM_REPOSITORY, REDACTED, VARIABLES, Origin, Settings, load, shown
from claudecluster.model.errors import Refused

KEY = "sk-ant-very-secret"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def env(home: Path, **more: str) -> dict[str, str]:
    return {"CLAUDECLUSTER_HOME": str(home), **more}


def test_without_anything_every_setting_has_a_default() -> None:
    loaded = load(environ={})
    assert loaded.settings.fallback_mode == "auto"
    assert loaded.settings.home.name == "claudecluster"
    assert loaded.settings.attempts is None
    assert set(loaded.origins.values()) == {Origin("default")}


def test_every_setting_has_a_variable_and_a_description() -> None:
    assert set(VARIABLES) == set(Settings.model_fields)
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_environment_is_stronger_than_the_own_file_and_that_than_the_repository(tmp_path: Path, home: Path) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "claudecluster.toml").write_text('default_model = "of-repo"\nfallback_model = "of-repo"\nmax_retries = 5\n')
    (home / "config.toml").write_text('default_model = "of-home"\nfallback_model = "of-home"\n')
    loaded = load(repo, env(home, CLAUDE_CODE_DEFAULT_MODEL="of-env"))
    assert (loaded.settings.default_model, loaded.settings.fallback_model, loaded.settings.attempts) == ("of-env", "of-home", 6)
    assert loaded.origins["default_model"] == Origin("environment", "CLAUDE_CODE_DEFAULT_MODEL")
    assert loaded.origins["fallback_model"] == Origin("file", str(home / "config.toml"))
    assert loaded.origins["max_retries"] == Origin("file", str(repo / "claudecluster.toml"))
    assert loaded.origins["timeout"] == Origin("default")


@pytest.mark.parametrize(
    "line", ['anthropic_base_url = "http://evil.example"', 'ollama_base_url = "http://evil.example"', 'anthropic_api_key = "x"']
)
def test_a_repository_cannot_redirect_keys_or_prompts(tmp_path: Path, home: Path, line: str) -> None:
    (tmp_path / "claudecluster.toml").write_text(line)
    with pytest.raises(Refused, match="may not set") as refused:
        load(tmp_path, env(home))
    assert "claudecluster.toml" in refused.value.message
    assert refused.value.hint


def test_nothing_a_repository_may_set_is_an_address_a_secret_or_a_path() -> None:
    assert not {name for name in FROM_REPOSITORY if any(word in name for word in ("url", "key", "token", "home", "path"))}


def test_an_unknown_key_is_refused_with_the_nearest_one(home: Path) -> None:
    (home / "config.toml").write_text('fallback_modle = "x"')
    with pytest.raises(Refused, match="unknown key `fallback_modle`") as refused:
        load(environ=env(home))
    assert "`fallback_mode`" in refused.value.hint


def test_home_cannot_be_set_in_the_file_that_lies_in_it(home: Path) -> None:
    (home / "config.toml").write_text('home = "/elsewhere"')
    with pytest.raises(Refused, match="needed before the file is read"):
        load(environ=env(home))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CLAUDE_CODE_FALLBACK_THRESHOLD", "lots"),
        ("CLAUDE_CODE_FALLBACK_THRESHOLD", "0"),
        ("CLAUDE_CODE_FALLBACK_THRESHOLD", "101"),
        ("CLAUDE_CODE_FALLBACK_MODE", "sometimes"),
        ("CLAUDE_CODE_MAX_RETRIES", "-1"),
        ("CLAUDE_CODE_TIMEOUT", "inf"),
        ("CLAUDE_CODE_TIMEOUT", "nan"),
        ("CLAUDE_CODE_TRACK_COSTS", "perhaps"),
        ("ANTHROPIC_BASE_URL", "ftp://x"),
        ("OLLAMA_BASE_URL", "http://a, b"),
        ("CLAUDE_SUBSCRIPTION_TIER", "gold"),
    ],
)
def test_a_value_that_does_not_fit_names_its_variable(home: Path, variable: str, value: str) -> None:
    with pytest.raises(Refused, match=f"^{variable} is not valid: ") as refused:
        load(environ=env(home, **{variable: value}))
    assert "\n" not in refused.value.message
    assert variable in refused.value.hint


def test_an_empty_variable_counts_as_unset(home: Path) -> None:
    assert load(environ=env(home, CLAUDE_CODE_TIMEOUT="", ANTHROPIC_API_KEY="")).settings.anthropic_api_key is None


def test_several_ollama_servers_are_comma_separated(home: Path) -> None:
    assert load(environ=env(home, OLLAMA_BASE_URL="http://a:1/, http://b:2")).settings.ollama_base_url == ("http://a:1", "http://b:2")


@pytest.mark.parametrize("text", ["a = ", "a = 1\na = 2", "\x00"])
def test_a_file_that_is_not_toml_is_one_clear_line(home: Path, text: str) -> None:
    (home / "config.toml").write_text(text)
    with pytest.raises(Refused, match=r"config\.toml is not valid TOML") as refused:
        load(environ=env(home))
    assert "\n" not in refused.value.message


def test_a_file_that_is_not_text_is_one_clear_line(home: Path) -> None:
    (home / "config.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Refused, match="cannot be read"):
        load(environ=env(home))


def test_secrets_are_shown_redacted_everywhere(home: Path) -> None:
    url = f"postgresql://user:{KEY}@host/db"
    loaded = load(
        environ=env(home, ANTHROPIC_API_KEY=KEY, ANTHROPIC_AUTH_TOKEN=KEY, CLAUDECLUSTER_GATEWAY_TOKEN=KEY, CLAUDECLUSTER_DATABASE_URL=url)
    )
    assert KEY not in repr(loaded) + str(shown(loaded))
    rows = {row["name"]: row for row in shown(loaded)}
    assert rows["anthropic_api_key"]["value"] == REDACTED
    assert rows["database_url"]["value"] == f"postgresql://user:{REDACTED}@host/db"
    assert loaded.settings.database == url


def test_a_secret_that_does_not_fit_is_not_quoted(home: Path) -> None:
    (home / "config.toml").write_text(f"anthropic_api_key = [{KEY!r}]")
    with pytest.raises(Refused) as refused:
        load(environ=env(home))
    assert KEY not in refused.value.message + refused.value.hint


def test_the_store_is_sqlite_in_the_state_folder_unless_given(home: Path) -> None:
    assert load(environ=env(home)).settings.database == f"sqlite:///{home}/state.db"


def test_a_relative_state_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(environ={"CLAUDECLUSTER_HOME": "here"}).settings.home == tmp_path / "here"


def test_replaced_values_are_checked_like_any_other(home: Path) -> None:
    settings = load(environ=env(home, ANTHROPIC_API_KEY=KEY)).settings
    changed = settings.replaced(fallback_mode="disabled")
    assert changed.fallback_mode == "disabled"
    assert changed.anthropic_api_key is not None
    assert changed.anthropic_api_key.get_secret_value() == KEY
    with pytest.raises(Refused):
        settings.replaced(anthropic_base_url="nowhere")


def test_loading_writes_nothing(tmp_path: Path) -> None:
    load(environ=env(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    assert stat.S_ISDIR(tmp_path.stat().st_mode)
