"""Every sandbox of ours keeps the promises of the port."""

import os
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from claudecluster.model.errors import Unavailable
from claudecluster.sandboxes.none import NoSandboxes
from claudecluster.sandboxes.process import ProcessSandboxes
from claudecluster.testing.contracts.ground import Ground, local_spec
from claudecluster.testing.contracts.sandbox import SandboxContract


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessSandboxes]:
    provider = ProcessSandboxes(tmp_path_factory.mktemp("process"), os.environ["PATH"])
    yield provider
    provider.close()


@pytest.fixture(scope="module")
def none(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NoSandboxes]:
    provider = NoSandboxes(tmp_path_factory.mktemp("none"), os.environ["PATH"])
    yield provider
    provider.close()


class TestProcess(SandboxContract):
    @pytest.fixture
    async def ground(self, process: ProcessSandboxes, tmp_path: Path) -> AsyncIterator[Ground]:
        try:
            await process.check()
        except Unavailable as error:
            pytest.skip(f"{error.message}; {error.hint}")
        yield Ground(process, partial(local_spec, process, tmp_path))
        for name in await process.names(""):
            await process.destroy(name)


class TestNone(SandboxContract):
    @pytest.fixture
    async def ground(self, none: NoSandboxes, tmp_path: Path) -> AsyncIterator[Ground]:
        yield Ground(none, partial(local_spec, none, tmp_path))
        for name in await none.names(""):
            await none.destroy(name)
