"""What every test can use."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The transport's client speaks asyncio only, so nothing here claims trio."""
    return "asyncio"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that start processes: they take longest, and pytest's workers shall end together."""
    items.sort(key=lambda item: not any(item.iter_markers("processes")) and not any(item.iter_markers("sdk")))
