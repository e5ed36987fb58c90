"""The shapes of what a configuration file may say about models: more servers, tables, prices, budgets. Plain data, checked.

`settings.py` has them as fields; `access.py` makes the gateway's own objects of them.
"""

import json
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

Address = Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Words = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) and value else value or ())]
Level = Literal["low", "medium", "high"]


def parsed(value: object) -> object:
    """Return what a variable of the environment says: JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("must be JSON in the environment") from None


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
