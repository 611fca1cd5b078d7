"""What every test can use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.upstream import ScriptedUpstream, run_upstream_in_thread


@pytest.fixture
def anyio_backend() -> str:
    """The transport's client speaks asyncio only, so nothing here claims trio."""
    return "asyncio"


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    """A provider for the gateway that the tests of a module share."""
    with run_upstream_in_thread() as running:
        yield running


@pytest.fixture(scope="module")
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where that gateway has its files."""
    return tmp_path_factory.mktemp(request.path.stem.removeprefix("test_"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that start processes: they take longest, and pytest's workers shall end together."""
    items.sort(key=lambda item: not any(item.iter_markers("processes")) and not any(item.iter_markers("sdk")))
