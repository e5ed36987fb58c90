"""How our values become columns and come back: JSON data, gate runs, states, and text that any database takes.

Used by `tables.py` alone. Nothing an agent prints may break a write, so NUL and half characters become U+FFFD.
"""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from enum import StrEnum
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Dialect

from claudecluster.model.errors import Refused
from claudecluster.model.run import GateRun


def plain(text: str) -> str:
    """Return text that UTF-8 and PostgreSQL can hold."""
    return text.replace("\0", "\ufffd").encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def to_json(value: object) -> str:
    """Return JSON text for plain data, enums and frozen nouns of ours. Raises Refused for anything else."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, ValueError, RecursionError):  # orjson's own error is a TypeError or ValueError
        return _once_more(value)


def _once_more(value: object) -> str:
    try:
        return orjson.dumps(_whole(value), option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused(f"not JSON data: {error}") from error


def _whole(value: object) -> object:
    # Half of a surrogate pair (from an undecodable file name, say) is the one thing worth mending.
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        return {_whole(key): _whole(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(entry) for entry in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _whole(asdict(value))
    return value


class Words(sa.TypeDecorator[str]):
    """Text from anywhere."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Write."""
        return None if value is None else plain(str(value))


class Json(sa.TypeDecorator[Any]):
    """Plain JSON data."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:  # noqa: ARG002 - SQLAlchemy's signature
        """Write."""
        return to_json(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002 - SQLAlchemy's signature
        """Read."""
        return orjson.loads(value)


class Names(Json):
    """A tuple of strings."""

    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> tuple[str, ...]:  # noqa: ARG002 - SQLAlchemy's signature
        """Read."""
        return tuple(orjson.loads(value))


class Gates(Json):
    """A tuple of gate runs."""

    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> tuple[GateRun, ...]:  # noqa: ARG002 - SQLAlchemy's signature
        """Read."""
        return tuple(GateRun(**gate) for gate in orjson.loads(value))


class State(sa.TypeDecorator[Any]):
    """One of our enums, by its value."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, states: type[StrEnum]) -> None:
        super().__init__()
        self.states = states

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:  # noqa: ARG002 - SQLAlchemy's signature
        """Write. Raises Refused for a word that is no such state."""
        try:
            return self.states(value).value
        except ValueError as error:
            raise Refused(f"{value!r} is not a {self.states.__name__}") from error

    def process_result_value(self, value: Any, dialect: Dialect) -> StrEnum:  # noqa: ARG002 - SQLAlchemy's signature
        """Read."""
        return self.states(value)
