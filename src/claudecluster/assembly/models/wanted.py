"""The shapes of what a configuration file may say about models: more servers, tables, prices, budgets. Plain data, checked.

`settings.py` has them as fields; `access.py` makes the gateway's own objects of them.
"""

import json
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

Address = Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Words = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) and value else value or ())]
Duration = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]
UserName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}$")]
TOKEN = ("token", "token_env", "token_file", "token_keyring", "token_vault")
Level = Literal["low", "medium", "high"]


def parsed(value: object) -> object:
    """Return what a variable of the environment says: JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("must be JSON in the environment") from None


def expanded(value: object) -> object:
    """Return a path as a whole one, `~` put in."""
    return Path(value).expanduser().absolute() if isinstance(value, str) else value


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Server(_Strict):
    """One more model server on the user's machines."""

    wire: Literal["openai", "anthropic"] = "openai"
    url: Address
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,40}$")]
    model: str = ""
    context: Annotated[int, Field(ge=0)] = 0
    max_output: Annotated[int, Field(ge=0)] = 0
    tools: bool = True
    vision: bool = False
    truncates: bool = False
    slots: Annotated[int, Field(ge=1)] = 8
    api_key: SecretStr | None = None


class Choice(_Strict):
    """One row of the table by which a local model is chosen."""

    model: Annotated[str, Field(min_length=1)]
    category: Words = ()
    complexity: Annotated[tuple[Level, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)] = ()
    language: Words = ()
    wanted: str = ""

    def row(self) -> dict[str, Any]:
        """Return it as the gateway's table reads it."""
        return self.model_dump()


class Route(_Strict):
    """One row of the routing table: which providers are asked for such work, in which order, and as which model."""

    category: str = "*"
    model: str = "*"
    providers: Words = ()
    use: str = ""


class Tariff(_Strict):
    """A model's price in USD per million tokens, from `since` on."""

    input: Amount
    output: Amount
    cache_read: Amount | None = None
    cache_write_5m: Amount | None = None
    cache_write_1h: Amount | None = None
    since: date = date(2026, 1, 1)


class Limits(_Strict):
    """What may be spent in all; nothing named is unlimited."""

    run_usd: Amount | None = None
    task_usd: Amount | None = None
    user_usd: Amount | None = None
    run_tokens: Annotated[int, Field(gt=0)] | None = None
    task_tokens: Annotated[int, Field(gt=0)] | None = None
    user_tokens: Annotated[int, Field(gt=0)] | None = None
    user_period: Literal["ever", "month", "day"] = "ever"


class User(_Strict):
    """Somebody with a token of their own at `claudecluster gateway`: where the token is kept, and what is theirs to use."""

    token: SecretStr | None = None
    token_env: str = ""
    token_file: Annotated[Path | None, BeforeValidator(expanded)] = None
    token_keyring: Annotated[str, Field(pattern=r"^([^/]+/[^/]+)?$")] = ""
    token_vault: Annotated[str, Field(pattern=r"^([^/#]+/[^#]+#[^#]+)?$")] = ""
    budget_usd: Amount | None = None
    budget_tokens: Annotated[int, Field(gt=0)] | None = None
    at_once: Annotated[int, Field(gt=0)] | None = None
    revoked: bool = False

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        given = [name for name in TOKEN if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(given)}")
        if not given and not self.revoked:
            raise ValueError(f"give one of {', '.join(TOKEN)}")
        return self


class Clients(_Strict):
    """What a client may cost the gateway: bytes, seconds, connections. What is not named stays as it is."""

    body: Annotated[int, Field(gt=0)] | None = None
    head: Annotated[int, Field(gt=0)] | None = None
    all_bodies: Annotated[int, Field(gt=0)] | None = None
    connections: Annotated[int, Field(gt=0)] | None = None
    head_seconds: Duration | None = None
    body_seconds: Duration | None = None
    idle_seconds: Duration | None = None
    stalled_seconds: Duration | None = None
