"""Every sandbox of ours keeps the promises of the port."""

import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from claudecluster.model.errors import Unavailable
from claudecluster.sandboxes.none import NoSandboxes
from claudecluster.sandboxes.process import ProcessSandboxes
from claudecluster.testing.contracts.sandbox import Ground, SandboxContract, local_spec


class TestProcess(SandboxContract):
    @pytest.fixture
    async def ground(self, tmp_path: Path) -> AsyncIterator[Ground]:
        provider = ProcessSandboxes(tmp_path / "state", os.environ["PATH"])
        try:
            await provider.check()
        except Unavailable as error:
            pytest.skip(f"{error.message}; {error.hint}")
        yield Ground(provider, partial(local_spec, provider, tmp_path))
        for name in await provider.names(""):
            await provider.destroy(name)
        provider.close()


class TestNone(SandboxContract):
    @pytest.fixture
    async def ground(self, tmp_path: Path) -> AsyncIterator[Ground]:
        provider = NoSandboxes(tmp_path / "state", os.environ["PATH"])
        yield Ground(provider, partial(local_spec, provider, tmp_path))
        provider.close()
