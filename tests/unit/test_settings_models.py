"""What a configuration file says about models, and what becomes of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from claudecluster.assembly.access import gateway_config, key_source, local_providers, stand_in
from claudecluster.assembly.models.standing import keeping, remembered
from claudecluster.assembly.settings import REDACTED, Settings, load, shown
from claudecluster.gateway.metering.prices import Price
from claudecluster.kit.clock import SystemClock
from claudecluster.model.errors import Refused
from claudecluster.model.task import Task

EVERYTHING = """
fallback_mode = "auto"
[[servers]]
wire = "openai"
url = "http://127.0.0.1:8000"
name = "vllm"
model = "qwen"
api_key = "sk-local-secret"
[[servers]]
wire = "anthropic"
url = "http://127.0.0.1:1234"
name = "studio"
[[models]]
model = "gpt-oss:20b"
category = "analyze"
complexity = ["low", "medium"]
[[models]]
model = "deepseek"
language = "rust"
[[routes]]
category = "test"
providers = ["vllm", "anthropic"]
[prices.claude-new]
input = 2.0
output = 10.0
[budgets]
run_usd = 5.0
user_tokens = 1000000
"""


def read(tmp_path: Path, text: str, **env: str) -> Settings:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    return load(environ={"CLAUDECLUSTER_HOME": str(tmp_path / "home"), **env}, config=file).settings


def test_a_file_brings_servers_tables_prices_and_budgets_to_the_gateway(tmp_path: Path) -> None:
    settings = read(tmp_path, EVERYTHING, OLLAMA_BASE_URL="http://127.0.0.1:9")
    config = gateway_config(settings, SystemClock())
    assert [provider.name for provider in config.local] == ["ollama", "vllm", "studio"]
    assert config.prices == {"claude-new": Price(2.0, 10.0, 0.2, 2.5, 4.0)}
    assert (config.budgets.run_usd, config.budgets.user_tokens, config.budgets.task_usd) == (5.0, 1_000_000, None)
    assert [(rule.category, rule.providers) for rule in config.rules] == [("test", ("vllm", "anthropic"))]


def test_the_table_chooses_by_category_complexity_and_language_and_says_why(tmp_path: Path) -> None:
    settings = read(tmp_path, EVERYTHING)
    rust = stand_in(settings, Task("a", prompt="Please mend it.", files=("src/lib.rs",)))
    assert (rust.model, rust.why) == ("deepseek", "deepseek: rust")
    other = stand_in(settings, Task("b", prompt="Please mend it.", files=("src/lib.py",)))
    assert other.model == "qwen3-coder:30b"


def test_the_environment_says_the_same_in_json(tmp_path: Path) -> None:
    servers = json.dumps([{"url": "http://127.0.0.1:8000", "name": "vllm"}])
    settings = read(tmp_path, "", CLAUDECLUSTER_SERVERS=servers, CLAUDECLUSTER_BUDGETS='{"run_usd": 1}')
    assert [provider.name for provider in local_providers(settings, SystemClock())] == ["vllm"]
    assert settings.budgets is not None
    assert settings.budgets.run_usd == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[models]]\nmodel = "m"\ncomplexity = "huge"', "`models` in"),
        ('[[models]]\ncategory = "test"', "row 1, `model`"),
        ('[[servers]]\nurl = "ftp://x"\nname = "a"', "row 1, `url`: must be an address"),
        ('[[servers]]\nurl = "http://x"\nname = "a"\nport = 3', "row 1, `port`"),
        ("[budgets]\nrun_usd = -1", "`run_usd`"),
        ('[prices.x]\ninput = "much"\noutput = 1', "`x`, `input`"),
        ('anthropic_api_key_vault = "nowhere"', "anthropic_api_key_vault"),
        ("budget = 3", "unknown key `budget`"),
    ],
)
def test_a_bad_value_is_named_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(Refused) as refused:
        read(tmp_path, text)
    assert words in refused.value.message
    assert "\n" not in refused.value.message
    assert refused.value.hint


def test_bad_json_in_the_environment_is_named(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="CLAUDECLUSTER_MODELS is not valid: must be JSON"):
        read(tmp_path, "", CLAUDECLUSTER_MODELS="{")


def test_secrets_of_servers_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(EVERYTHING)
    loaded = load(environ={"CLAUDECLUSTER_HOME": str(tmp_path)}, config=tmp_path / "gateway.toml")
    text = json.dumps(shown(loaded))
    assert "sk-local-secret" not in text
    assert REDACTED in text


async def test_a_key_file_is_read_again_when_it_changes_and_the_value_itself_is_stronger(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-one\n")
    source = key_source(read(tmp_path, "", ANTHROPIC_API_KEY_FILE=str(file)))
    assert await source() == "sk-one"
    file.write_text("sk-second\n")
    assert await source() == "sk-second"
    assert await key_source(read(tmp_path, "", ANTHROPIC_API_KEY_FILE=str(file), ANTHROPIC_API_KEY="sk-value"))() == "sk-value"


def document(*providers: dict[str, Any], requests: int = 1) -> dict[str, Any]:
    return {"at": "2026-01-01T00:00:00+00:00", "total": {"requests": requests}, "providers": list(providers), "advice": []}


def provider(**more: Any) -> dict[str, Any]:
    return {"name": "anthropic", "in_flight": 2, "threshold": 0.8, "ways": [], "windows": [], **more}


def way(models: str, heard: str, returns: str | None = None) -> dict[str, Any]:
    state, why = ("closed", "limited") if returns else ("open", "")
    return {"models": models, "state": state, "why": why, "returns": returns, "heard": heard}


def window(name: str, seen: str, resets: str, used: float = 0.9) -> dict[str, Any]:
    return {"name": name, "used": used, "resets": resets, "source": "server", "full_at": None, "seen": seen}


async def test_what_a_gateway_knew_of_limits_is_told_after_its_end_until_it_is_past(tmp_path: Path) -> None:
    early = window("five_hour", "2026-01-01T00:00:00+00:00", "2026-01-01T01:00:00+00:00")
    late = window("seven_day", "2026-01-01T00:00:00+00:00", "2026-01-05T00:00:00+00:00", used=0.3)
    shut = way("opus", "2026-01-01T00:00:00+00:00", "2026-01-01T02:00:00+00:00")
    known = document(provider(ways=[shut], windows=[early, late]))
    async with keeping(tmp_path, lambda: known):
        pass
    fresh = document()
    told = remembered(tmp_path, fresh, 1767229200.0)  # 01:00
    assert told["as_of"] == "2026-01-01T00:00:00+00:00"
    assert told["providers"][0]["windows"] == [late]
    assert (told["providers"][0]["state"], told["providers"][0]["in_flight"]) == ("closed", 0)
    assert remembered(tmp_path, fresh, 1767240000.0)["providers"][0]["state"] == "open"


async def test_gateways_on_one_state_folder_keep_what_each_of_them_has_heard_and_the_newest_word_counts(tmp_path: Path) -> None:
    shut = way("opus", "2026-01-01T00:00:05+00:00", "2026-01-01T02:00:00+00:00")
    older = way("opus", "2026-01-01T00:00:04+00:00")
    full = window("five_hour", "2026-01-01T00:00:05+00:00", "2026-01-01T03:00:00+00:00")
    stale = window("five_hour", "2026-01-01T00:00:01+00:00", "2026-01-01T03:00:00+00:00", used=0.2)
    for said in (
        provider(ways=[shut], windows=[full]),
        provider(ways=[older, way("sonnet", "2026-01-01T00:00:06+00:00")], windows=[stale]),
        {**provider(ways=[way("", "2026-01-01T00:00:01+00:00", "2026-01-01T00:30:00+00:00")]), "name": "ollama"},
    ):
        async with keeping(tmp_path, lambda said=said: document(said)):
            pass
    told = {row["name"]: row for row in remembered(tmp_path, document(), 1767225700.0)["providers"]}  # 00:01:40
    assert (told["anthropic"]["state"], told["anthropic"]["returns"]) == ("closed", "2026-01-01T02:00:00+00:00")
    assert [row["models"] for row in told["anthropic"]["ways"]] == ["opus", "sonnet"]
    assert told["anthropic"]["windows"] == [full]
    assert told["ollama"]["state"] == "closed"
    newer = way("opus", "2026-01-01T00:01:30+00:00")
    async with keeping(tmp_path, lambda: document(provider(ways=[newer]))):
        pass
    told = {row["name"]: row for row in remembered(tmp_path, document(), 1767225700.0)["providers"]}
    assert told["anthropic"]["state"] == "near-limit", "the way is open again, its window is as full as it was"


ADDING = """
import asyncio, sys
from pathlib import Path
from claudecluster.assembly.models import standing
home, mine = Path(sys.argv[1]), sys.argv[2]
standing.EVERY = 0.001
count = [0]
def usage():
    count[0] += 1
    way = {"models": f"{mine}{count[0] % 20}", "state": "closed", "why": "limited", "returns": "2999-01-01T00:00:00+00:00", "heard": f"2026-01-01T00:00:{count[0] % 60:02}+00:00"}
    return {"at": "2026-01-01T00:00:00+00:00", "providers": [{"name": "anthropic", "threshold": 0.8, "ways": [way], "windows": []}]}
async def main():
    async with standing.keeping(home, usage):
        while count[0] < 60:
            await asyncio.sleep(0.005)
asyncio.run(main())
"""


def test_processes_that_write_at_once_erase_nothing_of_each_others(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", ADDING, str(tmp_path), name]) for name in ("a", "b", "c")]
    assert [writer.wait(30) for writer in writers] == [0, 0, 0]
    (row,) = remembered(tmp_path, document(), 1767225700.0)["providers"]
    assert {way["models"] for way in row["ways"]} == {f"{name}{number}" for name in "abc" for number in range(20)}
    assert [path.name for path in tmp_path.glob("limits.*")].count("limits.json") == 1
    assert len(list(tmp_path.iterdir())) == 2, "nothing but the file and its lock"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"providers": 3}', '{"at": 1, "providers": [3], "advice": []}'])
def test_a_spoilt_file_of_limits_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "limits.json").write_text(text)
    assert remembered(tmp_path, document(), 0.0) == document()


async def test_a_gateway_nobody_asked_leaves_what_was_known(tmp_path: Path) -> None:
    async with keeping(tmp_path, lambda: document(requests=0)):
        pass
    assert not (tmp_path / "limits.json").exists()
