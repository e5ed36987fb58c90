"""What models cost: our own small table, with dates. Used by the exchange for each metered answer.

Prices are list prices in USD per million tokens as Claude Code applies them; an override replaces an entry. Batch and priority tiers are not in it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime

from claudecluster.gateway.stream.tally import Tally

MILLION = 1_000_000
WEB_SEARCH_USD = 0.01


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens from `since` on. Prompts of more than `long` tokens cost `long_factor` times as much."""

    input: float
    output: float
    cache_read: float
    cache_write_5m: float
    cache_write_1h: float
    since: date = date(2026, 1, 1)
    long: int | None = None
    long_factor: float = 1.0

    def cost(self, tally: Tally) -> float:
        """Return what an answer cost in USD."""
        prompt = tally.input_tokens + tally.cache_read_input_tokens + tally.cache_creation_5m + tally.cache_creation_1h
        factor = self.long_factor if self.long is not None and prompt > self.long else 1.0
        tokens = (
            tally.input_tokens * self.input
            + tally.output_tokens * self.output
            + tally.cache_read_input_tokens * self.cache_read
            + tally.cache_creation_5m * self.cache_write_5m
            + tally.cache_creation_1h * self.cache_write_1h
        )
        return factor * tokens / MILLION + tally.web_searches * WEB_SEARCH_USD


def standard(price_in: float, price_out: float, *, read: float | None = None, long: int | None = None, long_factor: float = 1.0) -> Price:
    """Return a price with Anthropic's usual cache factors: reads a tenth, writes 1.25 (five minutes) and 2 (one hour)."""
    cache_read = price_in / 10 if read is None else read
    return Price(price_in, price_out, cache_read, price_in * 1.25, price_in * 2, long=long, long_factor=long_factor)


OPUS_4 = standard(5, 25)

# Checked on 2026-11-20 against what Claude Code 2.1.327 reports for known usage.
TABLE: Mapping[str, tuple[Price, ...]] = {
    "claude-opus-4-5": (OPUS_4,),
    "claude-opus-4-6": (OPUS_4,),
    "claude-opus-4-7": (OPUS_4,),
    "claude-opus-4-8": (OPUS_4,),
    "claude-opus-5": (OPUS_4,),
    "claude-opus-5-5": (standard(4, 20, read=0.2),),
    "claude-sonnet-4-5": (standard(3, 15),),
    "claude-sonnet-4-6": (standard(3, 15),),
    "claude-sonnet-5": (standard(2, 10),),
    "claude-sonnet-5-5": (standard(2, 10, read=0.1),),
    "claude-haiku-4-5": (standard(1, 5),),
    "claude-haiku-5-5": (standard(0.1, 0.5, long=100_000, long_factor=5.0),),
    "claude-fable-5": (standard(10, 50),),
    "claude-fable-5-2": (standard(8, 40, read=0.2),),
}
DATED = re.compile(r"(-20\d{6}|-latest|@.*|\[.*\])+$")


class Prices:
    """The table with a user's own entries on top. Unknown Claude models cost what the dearest known one of their family does."""

    def __init__(self, overrides: Mapping[str, Price | tuple[Price, ...]] | None = None) -> None:
        own = {name: (entry,) if isinstance(entry, Price) else entry for name, entry in (overrides or {}).items()}
        self._table: dict[str, tuple[Price, ...]] = {**TABLE, **own}

    def of(self, model: str, at: float) -> Price | None:
        """Return the price of a model at a moment; None for models nobody bills."""
        name = DATED.sub("", model.rpartition("/")[2])
        entries = self._table.get(model) or self._table.get(name)
        if entries is None:
            return self._family(name)
        today = datetime.fromtimestamp(at, UTC).date()
        known = sorted(entries, key=lambda price: price.since)
        return next((price for price in reversed(known) if price.since <= today), known[0])

    def cost(self, tally: Tally, model: str, at: float) -> float:
        """Return what an answer of that model cost in USD; 0 for models nobody bills."""
        price = self.of(model, at)
        return 0.0 if price is None else price.cost(tally)

    def _family(self, name: str) -> Price | None:
        if "claude" not in name:
            return None
        kin = [prices[-1] for known, prices in self._table.items() if known.startswith("claude-") and known.split("-")[1] in name]
        every = kin or [prices[-1] for prices in self._table.values()]
        return max(every, key=lambda price: price.output)
