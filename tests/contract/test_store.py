"""The store keeps the promises of its ports on both databases."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from claudecluster.storage.open import open_store
from claudecluster.testing.contracts.store import FactsContract, Memory, RosterContract, StoppedClock, StoreContract


async def opened(url: str) -> AsyncIterator[Memory]:
    clock = StoppedClock()
    store = await open_store(url, clock=clock)
    yield Memory(store, store.roster, clock)
    await store.close()


class TestSqlite(StoreContract, FactsContract, RosterContract):
    @pytest.fixture
    async def memory(self, tmp_path: Path) -> AsyncIterator[Memory]:
        async for memory in opened(f"sqlite:///{tmp_path}/store.db"):
            yield memory


class TestPostgres(StoreContract, FactsContract, RosterContract):
    @pytest.fixture
    async def memory(self, postgres_url: str) -> AsyncIterator[Memory]:
        async for memory in opened(postgres_url):
            yield memory
