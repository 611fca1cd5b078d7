"""What is sent to providers is tested on both event loops: uvloop runs in production, asyncio where there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fakes.sending import LIMIT

from pipeline.settings import DispatchSettings
from workers.providers._http import Sender


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    async with Sender(DispatchSettings(max_response_bytes=LIMIT, connect_timeout=2)) as sender:
        yield sender
