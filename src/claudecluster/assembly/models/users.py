"""The users of a gateway as configured, with their tokens read; and how a gateway that runs hears that the list has changed.

A changed file is seen within a second or two, at once with SIGHUP. A configuration that cannot be read leaves the list as it was;
a token that cannot be read leaves its user out.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from claudecluster.assembly.models.secrets import Reference
from claudecluster.assembly.models.wanted import User
from claudecluster.assembly.settings import Settings
from claudecluster.gateway.guests import Guest
from claudecluster.gateway.upstream.keys import KeySource
from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.limits.allowance import Allowance
from claudecluster.model.errors import ClusterError, Unavailable

LOOKS = 1.0  # seconds between looks at the files
REREADS = 60.0  # seconds after which keyring and Vault are asked again
Marks = list[tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Watch:
    """How a gateway follows its configuration: `read` loads it anew, `files` are those it is made of, `asked` wants it read at once.

    `say` tells whoever runs the gateway what is wrong.
    """

    read: Callable[[], Settings]
    say: Callable[[str], None]
    files: tuple[Path, ...] = ()
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    clock: Clock = field(default_factory=SystemClock)

    def tell(self, words: str) -> None:
        """Say it, if anybody still listens."""
        with suppress(OSError):
            self.say(words)


class Users:
    """Reads the tokens of configured users. Raises Refused, at once, if a package for them is missing."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._users = settings.users
        self._sources: dict[str, KeySource] = {name: _reference(user).source(settings) for name, user in settings.users.items()}
        self._say = say
        self._silent: set[str] = set()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tokens."""
        return tuple(user.token_file for user in self._users.values() if user.token_file is not None)

    @property
    def remote(self) -> bool:
        """Whether some tokens lie where no file tells that they have changed."""
        return any(user.token_keyring or user.token_vault for user in self._users.values())

    async def guests(self) -> Mapping[str, Guest]:
        """Return who may come, by token. Who has no token that can be read is left out, and so are two with the same one; both are said."""
        found: dict[str, Guest] = {}
        shared: set[str] = set()
        for name, source in self._sources.items():
            user = self._users[name]
            token = await self._token(name, source)
            shared |= {token} & found.keys()
            if token:
                found[token] = Guest(name, Allowance(user.budget_usd, user.budget_tokens), user.at_once)
        if shared:
            self._say("two users have the same token, which counts for neither of them")
        return {token: guest for token, guest in found.items() if token not in shared}

    async def _token(self, name: str, source: KeySource) -> str:
        try:
            token, why = await source(), "it is empty"
        except Unavailable as error:
            token, why = "", error.message
        except ValueError:
            token, why = "", "it is not UTF-8 text"
        if token:
            self._silent.discard(name)
        elif name not in self._silent:
            self._silent.add(name)
            self._say(f"the user {name} has no token and is not let in: {why}")
        return token


async def follow(users: Users, watch: Watch, admit: Callable[[Mapping[str, Guest]], None]) -> None:
    """Keep a gateway's list up to date until cancelled."""
    seen, read_at = _marks(watch, users), watch.clock.monotonic()
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOKS):
                await watch.asked.wait()
        now, marks = watch.clock.monotonic(), _marks(watch, users)
        if not watch.asked.is_set() and marks == seen and not (users.remote and now - read_at >= REREADS):
            continue
        if watch.asked.is_set() or marks != seen:
            users = _again(users, watch)
        watch.asked.clear()
        seen, read_at = _marks(watch, users), now
        try:
            admit(await users.guests())
        except Exception as error:  # noqa: BLE001 - whatever a keyring's back end throws, the next look must come
            watch.tell(f"the list of users stays as it was: {type(error).__name__}: {error}")


def _again(users: Users, watch: Watch) -> Users:
    try:
        return Users(watch.read(), watch.tell)
    except ClusterError as error:
        watch.tell(f"the list of users stays as it was: {error.message}")
        return users


def _marks(watch: Watch, users: Users) -> Marks:
    return [_mark(path) for path in (*watch.files, *users.files)]


def _mark(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return found.st_mtime_ns, found.st_size, found.st_ino


def _reference(user: User) -> Reference:
    return Reference(user.token, user.token_file, user.token_keyring, user.token_vault)
