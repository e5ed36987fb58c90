"""Which providers may answer a request, best first: the visitor's wishes, the user's table, the fallback mode.

Pure. The exchange asks it once per request, and then tries what it names in view of limits and failures.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from claudecluster.gateway.provider import Provider
from claudecluster.gateway.server.message import Refusal
from claudecluster.limits.allowance import Allowance, Period
from claudecluster.limits.summary import Ledger, tokens
from claudecluster.model.usage import Usage
from claudecluster.ports.gateway import Visitor

Mode = Literal["auto", "manual", "disabled"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the routing table: what matches both patterns goes to `providers` in that order, as model `use` if that is given.

    Patterns are shell-style; the first matching row counts. Empty `providers` leaves the order as it is.
    """

    category: str = "*"
    model: str = "*"
    providers: tuple[str, ...] = ()
    use: str = ""


@dataclass(frozen=True, slots=True)
class Budgets:
    """What may be spent in all, in USD and tokens of every tier; None is unlimited. A visitor's own budget comes on top.

    `user_period` is when the users' budgets start anew; a user's own allowance takes the place of `user_usd` and `user_tokens`.
    """

    run_usd: float | None = None
    task_usd: float | None = None
    user_usd: float | None = None
    run_tokens: int | None = None
    task_tokens: int | None = None
    user_tokens: int | None = None
    user_period: Period = "ever"

    def of_user(self, own: Allowance) -> Allowance:
        """Return what a user may spend."""
        return Allowance(self.user_usd if own.usd is None else own.usd, self.user_tokens if own.tokens is None else own.tokens)

    @property
    def limited(self) -> bool:
        """Whether anything is limited."""
        return any(getattr(self, f"{who}_{what}") is not None for who in ("run", "task", "user") for what in ("usd", "tokens"))


@dataclass(slots=True)
class Fallback:
    """Whether local models stand in. `auto`: when the first choice cannot; `manual`: while connected; `disabled`: never.

    `connected` sends everything to the local models until it is taken back.
    """

    mode: Mode = "auto"
    threshold: float = 0.8
    connected: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """One provider that may answer, and as which model (empty: as asked). `degraded` is a stand-in for what was wanted."""

    provider: Provider
    model: str = ""
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """The user's table over the providers there are."""

    providers: tuple[Provider, ...]
    fallback: Fallback
    rules: tuple[Rule, ...] = ()
    budgets: Budgets = Budgets()

    def choices(self, visitor: Visitor, model: str, absent: frozenset[str] = frozenset()) -> tuple[Choice, ...] | Refusal:
        """Return who may answer, best first; providers named in `absent` are not configured. A Refusal says why nobody may."""
        rule = next((row for row in self.rules if fnmatchcase(visitor.category, row.category) and fnmatchcase(model, row.model)), Rule())
        present = [provider for provider in self._ordered(rule) if provider.name not in absent]
        if visitor.privacy == "local":
            present = [provider for provider in present if provider.kind == "local"]
            if not present:
                return Refusal(403, "This task may not leave the machine, and no local model is configured.", retry=False)
        if not present:
            return Refusal(403, "No model is configured: there is no Anthropic API key and no local model.", retry=False)
        wanted = self._connected(present)
        first = wanted[0]
        if visitor.fallback == "never" or not self._may_stand_in():
            wanted = [provider for provider in wanted if provider.kind == first.kind]
        return tuple(Choice(provider, rule.use if provider is first else "", provider.kind != first.kind) for provider in wanted)

    def spent(self, visitor: Visitor, own: Usage, user: tuple[Usage, Allowance], ledger: Ledger) -> Refusal | None:
        """Return the refusal of a request that no budget is left for.

        `own` is what the visitor's own door has used, `user` what their user has used in this period and what is theirs alone to spend.
        """
        allowance = self.budgets.of_user(user[1])
        task = ledger.of("task", f"{visitor.run}/{visitor.task}") if visitor.task else Usage()
        limits = (
            ("This task", own, visitor.budget_usd, visitor.budget_tokens),
            ("This run", ledger.of("run", visitor.run), self.budgets.run_usd, self.budgets.run_tokens),
            ("This task", task, self.budgets.task_usd, self.budgets.task_tokens),
            ("This user", user[0], allowance.usd, allowance.tokens),
        )
        for who, usage, usd, most in limits:
            if usd is not None and usage.cost_usd >= usd:
                return Refusal(402, f"{who} has used its budget of ${usd:.2f} (${usage.cost_usd:.2f} spent).", retry=False)
            if most is not None and tokens(usage) >= most:
                return Refusal(402, f"{who} has used its budget of {most} tokens ({tokens(usage)} used).", retry=False)
        return None

    def _ordered(self, rule: Rule) -> list[Provider]:
        named = [provider for name in rule.providers for provider in self.providers if provider.name == name]
        others = [provider for provider in self.providers if provider not in named]
        return named + _least_loaded(others)

    def _connected(self, present: list[Provider]) -> list[Provider]:
        if not self.fallback.connected or self.fallback.mode == "disabled":
            return present
        local = [provider for provider in present if provider.kind == "local"]
        return [*local, *(provider for provider in present if provider.kind != "local")] if local else present

    def _may_stand_in(self) -> bool:
        return self.fallback.mode == "auto"


def _least_loaded(providers: Iterable[Provider]) -> list[Provider]:
    """Keep the order of kinds, and put the idlest of the local ones first."""
    return sorted(providers, key=lambda provider: (provider.kind == "local", provider.load() if provider.kind == "local" else 0.0))
