"""What every test can use."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The transport's client speaks asyncio only, so nothing here claims trio."""
    return "asyncio"
