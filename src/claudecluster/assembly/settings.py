"""Everything the environment may decide, read once. The doors call `load`; nobody else reads the environment.

From weakest to strongest: default, `claudecluster.toml` in the repository, `config.toml` in the state folder, environment.
A repository is other people's text: its file may set only what cannot redirect a key, a prompt or the state.
Plain pydantic on purpose: importing pydantic-settings costs every command 0.25 s.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from claudecluster.assembly.models.wanted import Address, Choice, Clients, Limits, Route, Server, Tariff, User, UserName, expanded, parsed
from claudecluster.assembly.nearest import suggestion
from claudecluster.assembly.paths import config_file
from claudecluster.model.errors import Refused

REPOSITORY_FILE = "claudecluster.toml"
REDACTED = "********"
PASSWORD = re.compile(r"(://[^/@]*:)[^@]*@")


def _listed(value: object) -> object:
    return tuple(part.strip().rstrip("/") for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Json = BeforeValidator(parsed)
Seconds = Annotated[float, Field(gt=0, le=604800, allow_inf_nan=False)]


class Settings(BaseModel):
    """What is configured, checked. Secrets are SecretStr: they do not print."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    home: Annotated[Path, BeforeValidator(expanded)] = Field(
        default_factory=lambda: platformdirs.user_data_path("claudecluster"), description="the state folder"
    )
    database_url: SecretStr | None = Field(None, description="the store; SQLite in the state folder unless given")
    anthropic_api_key: SecretStr | None = Field(None, description="key for Anthropic; never enters a sandbox")
    anthropic_auth_token: SecretStr | None = Field(None, description="bearer token sent instead of a key")
    anthropic_api_key_file: Annotated[Path | None, BeforeValidator(expanded)] = Field(
        None, description="file with the key in its first line, read again when it changes"
    )
    anthropic_api_key_keyring: str = Field(
        "", pattern=r"^([^/]+/[^/]+)?$", description="SERVICE/NAME of the key in the system's keyring (extra `keyring`)"
    )
    anthropic_api_key_vault: str = Field(
        "", pattern=r"^([^/#]+/[^#]+#[^#]+)?$", description="MOUNT/PATH#NAME of the key in Vault (extra `vault`)"
    )
    vault_url: Address = Field("http://127.0.0.1:8200", description="where Vault is reached")
    vault_token: SecretStr | None = Field(None, description="token for Vault")
    pass_login: bool = Field(False, description="let a client's own subscription login through to Anthropic; never stored")
    anthropic_base_url: Address = Field("https://api.anthropic.com", description="where Anthropic is reached")
    ollama_base_url: Annotated[tuple[Address, ...], BeforeValidator(_listed)] = Field((), description="Ollama servers, comma-separated")
    servers: Annotated[tuple[Server, ...], Json] = Field((), description="more model servers of your own, OpenAI's or Anthropic's wire")
    models: Annotated[tuple[Choice, ...], Json] = Field((), description="table by which a local model is chosen")
    routes: Annotated[tuple[Route, ...], Json] = Field((), description="table by which providers are chosen")
    prices: Annotated[dict[str, Tariff], Json] = Field({}, description="prices of models, over the built-in ones")
    budgets: Annotated[Limits | None, Json] = Field(None, description="what runs, tasks and users may spend")
    subscription_tier: Literal["api", "free", "pro", "max", "max5", "max20", "teams", "enterprise"] = Field(
        "api", description="tier whose limit windows are counted where the server reports none"
    )
    fallback_mode: Literal["auto", "manual", "disabled"] = Field("auto", description="when the local model takes over")
    fallback_threshold: float = Field(80.0, gt=0, le=100, description="per cent of a limit at which traffic moves over")
    fallback_model: str = Field("", description="local model to answer with")
    default_model: str = Field("", description="model for tasks that name none")
    max_retries: int | None = Field(None, ge=0, le=99, description="retries of a task that name no max_attempts")
    timeout: Seconds | None = Field(None, description="seconds an attempt may take where the task does not say")
    track_costs: bool = Field(True, description="meter tokens and money")
    gateway_token: SecretStr | None = Field(None, description="token clients of `claudecluster gateway` must show")
    users: Annotated[dict[UserName, User], Json] = Field({}, description="more users of `claudecluster gateway`, each with their own token")
    clients: Annotated[Clients | None, Json] = Field(None, description="what one client may cost the gateway: bytes, seconds, connections")
    path: str = Field(os.defpath, description="where programs and toolchains are found")

    @property
    def database(self) -> str:
        """The store's SQLAlchemy URL, in clear: it may hold a password."""
        return self.database_url.get_secret_value() if self.database_url else f"sqlite:///{self.home / 'state.db'}"

    @property
    def attempts(self) -> int | None:
        """Attempts a task gets where it does not say: the first one and its retries; None where not configured."""
        return None if self.max_retries is None else self.max_retries + 1

    def replaced(self, **values: object) -> Self:
        """Return settings with some values given by the caller, checked like any other."""
        try:
            return self.model_validate({name: getattr(self, name) for name in type(self).model_fields} | values)
        except ValidationError as error:
            raise _refused(error, {}) from None


VARIABLES: Mapping[str, str] = {
    "home": "CLAUDECLUSTER_HOME",
    "database_url": "CLAUDECLUSTER_DATABASE_URL",
    "anthropic_api_key": "ANTHROPIC_API_KEY",
    "anthropic_auth_token": "ANTHROPIC_AUTH_TOKEN",
    "anthropic_api_key_file": "ANTHROPIC_API_KEY_FILE",
    "anthropic_api_key_keyring": "ANTHROPIC_API_KEY_KEYRING",
    "anthropic_api_key_vault": "ANTHROPIC_API_KEY_VAULT",
    "vault_url": "VAULT_ADDR",
    "vault_token": "VAULT_TOKEN",
    "pass_login": "CLAUDECLUSTER_PASS_LOGIN",
    "anthropic_base_url": "ANTHROPIC_BASE_URL",
    "ollama_base_url": "OLLAMA_BASE_URL",
    "servers": "CLAUDECLUSTER_SERVERS",
    "models": "CLAUDECLUSTER_MODELS",
    "routes": "CLAUDECLUSTER_ROUTES",
    "prices": "CLAUDECLUSTER_PRICES",
    "budgets": "CLAUDECLUSTER_BUDGETS",
    "subscription_tier": "CLAUDE_SUBSCRIPTION_TIER",
    "fallback_mode": "CLAUDE_CODE_FALLBACK_MODE",
    "fallback_threshold": "CLAUDE_CODE_FALLBACK_THRESHOLD",
    "fallback_model": "CLAUDE_CODE_FALLBACK_MODEL",
    "default_model": "CLAUDE_CODE_DEFAULT_MODEL",
    "max_retries": "CLAUDE_CODE_MAX_RETRIES",
    "timeout": "CLAUDE_CODE_TIMEOUT",
    "track_costs": "CLAUDE_CODE_TRACK_COSTS",
    "gateway_token": "CLAUDECLUSTER_GATEWAY_TOKEN",
    "users": "CLAUDECLUSTER_USERS",
    "clients": "CLAUDECLUSTER_CLIENTS",
    "path": "PATH",
}
FROM_REPOSITORY = frozenset({"fallback_threshold", "fallback_model", "models", "default_model", "max_retries", "timeout", "track_costs"})


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: `source` is default, file or environment; `where` names the file or the variable."""

    source: Literal["default", "file", "environment"]
    where: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for every one of them where it came from."""

    settings: Settings
    origins: Mapping[str, Origin]


def load(repo: Path | None = None, environ: Mapping[str, str] | None = None, config: Path | None = None) -> Loaded:
    """Read the environment (the process's own unless given) and the configuration files; `config` is one more, stronger than the others.

    Raises Refused, naming the variable or the file, for unknown keys and values that do not fit.
    """
    environ = os.environ if environ is None else environ
    given = {name: environ[variable] for name, variable in VARIABLES.items() if environ.get(variable)}
    origins: dict[str, Origin] = {}
    values: dict[str, Any] = {}
    home = Path(given["home"]).expanduser() if "home" in given else platformdirs.user_data_path("claudecluster")
    for file, allowed in _files(repo, home, config):
        found = _read(file, allowed)
        values |= found
        origins |= {name: Origin("file", str(file)) for name in found}
    origins |= {name: Origin("environment", VARIABLES[name]) for name in given}
    try:
        settings = Settings.model_validate(values | given)
    except ValidationError as error:
        raise _refused(error, origins) from None
    settings = settings.model_copy(update={"users": _with_tokens(settings.users, environ)})
    return Loaded(settings, {name: origins.get(name, Origin("default")) for name in Settings.model_fields})


def _with_tokens(users: Mapping[str, User], environ: Mapping[str, str]) -> dict[str, User]:
    """Return the users with the tokens that variables hold; without those who are revoked."""
    found = {name: user for name, user in users.items() if not user.revoked}
    for name, user in found.items():
        if user.token_env and not environ.get(user.token_env):
            raise Refused(f"the token of user `{name}` is to come from {user.token_env}, which is not set", hint=f"set {user.token_env}")
    return {
        name: user.model_copy(update={"token": SecretStr(environ[user.token_env])}) if user.token_env else user
        for name, user in found.items()
    }


def shown(loaded: Loaded) -> list[dict[str, object]]:
    """Return every setting as plain data: name, value (secrets redacted), source, where, variable, description."""
    rows: list[dict[str, object]] = []
    for name, field in Settings.model_fields.items():
        value = getattr(loaded.settings, name)
        value = PASSWORD.sub(rf"\1{REDACTED}@", loaded.settings.database) if name == "database_url" else _plain(value)
        origin = loaded.origins[name]
        about = field.description or ""
        rows.append(
            {
                "name": name,
                "value": value,
                "source": origin.source,
                "where": origin.where,
                "variable": VARIABLES[name],
                "description": about,
            }
        )
    return rows


def _plain(value: object) -> object:
    """Return a value as data that can be shown."""
    match value:
        case SecretStr():
            return REDACTED
        case BaseModel():
            return {name: _plain(getattr(value, name)) for name in type(value).model_fields if getattr(value, name) is not None}
        case dict():
            return {name: _plain(each) for name, each in value.items()}
        case tuple():
            return [_plain(each) for each in value]
        case Path() | date():
            return str(value)
        case _:
            return value


def _files(repo: Path | None, home: Path, config: Path | None) -> list[tuple[Path, frozenset[str]]]:
    everything = frozenset(Settings.model_fields) - {"home", "path"}
    own = [(config_file(home), everything)]
    if config is not None:
        if not config.is_file():
            raise Refused(f"there is no configuration file {config}", hint="check the path given with --config")
        own.append((config, everything))
    return own if repo is None else [(repo / REPOSITORY_FILE, FROM_REPOSITORY), *own]


def _read(file: Path, allowed: frozenset[str]) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except NotADirectoryError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{file} cannot be read: {error}", hint="mend or remove the file") from None
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{file} is not valid TOML: {error}", hint="write one `name = value` a line") from None
    for name in values:
        if name in allowed:
            continue
        if name in Settings.model_fields:
            raise Refused(
                f"{file} may not set `{name}`: {_why(file)}",
                hint=f"set it in the environment as {VARIABLES[name]}, or in your own config.toml",
            )
        raise Refused(f"{file} has an unknown key `{name}`", hint=suggestion(name, allowed))
    return values


def _why(file: Path) -> str:
    if file.name == REPOSITORY_FILE:
        return "a repository does not decide where keys, prompts and state go"
    return "it is needed before the file is read"


def _refused(error: ValidationError, origins: Mapping[str, Origin]) -> Refused:
    first = error.errors(include_url=False, include_input=False)[0]
    name = str(first["loc"][0])
    origin = origins.get(name, Origin("default"))
    inside = ", ".join(f"row {part + 1}" if isinstance(part, int) else f"`{part}`" for part in first["loc"][1:])
    what = origin.where if origin.source == "environment" else f"`{name}` in {origin.where}" if origin.where else f"setting `{name}`"
    about = Settings.model_fields[name].description if name in Settings.model_fields else ""
    message = first["msg"][0].lower() + first["msg"][1:]
    message = message.removeprefix("value error, ")
    if first["type"] == "string_pattern_mismatch" and "http" in first["ctx"]["pattern"]:
        message = "must be an address such as http://127.0.0.1:11434"
    return Refused(f"{what} is not valid: {inside + ': ' if inside else ''}{message}", hint=f"{what} is {about}; correct or unset it")


def environment() -> Mapping[str, str]:
    """Return this process's environment, for what must see it whole: git on the user's own repository."""
    return dict(os.environ)
