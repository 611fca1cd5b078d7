"""A look at a batch's input takes no threads that others wait for, and as much time as its limits let it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio import to_thread
from fakes.batches import CHAT, line
from fakes.configs import deployment
from fakes.configs import settings as make_settings

from pipeline.batch_requests import Judge
from pipeline.batch_validation import Validation
from pipeline.catalog import Catalog
from pipeline.settings import BatchSettings
from pipeline.stores.lines import PIECE
from pipeline.stores.local import LocalBlobs

pytestmark = pytest.mark.anyio


@pytest.fixture
async def one_thread() -> AsyncIterator[None]:
    """Let everybody share a single thread."""
    limiter = to_thread.current_default_thread_limiter()
    before, limiter.total_tokens = limiter.total_tokens, 1
    yield
    limiter.total_tokens = before


async def look(directory: Path, contents: bytes, most: int = 100) -> tuple[list[str], int]:
    """Return the codes of what is wrong, and how many pieces were read."""
    pieces = 0

    async def pause() -> None:
        nonlocal pieces
        pieces += 1

    settings = msgspec.structs.replace(make_settings(deployment("gpt-4")), batches=BatchSettings(max_batch_lines=most))
    blobs = LocalBlobs(directory)
    await blobs.create("in", contents)
    async with blobs.open("in") as blob:
        validation = Validation(blob, Judge(CHAT, (), Catalog(settings)), settings)
        with anyio.fail_after(10):
            await validation.run(pause)
    return [error.code for error in validation.errors], pieces


@pytest.mark.usefixtures("one_thread")
async def test_a_repeated_custom_id_is_looked_up_though_nobody_has_a_thread_left(tmp_path: Path) -> None:
    long = line("a", "x" * 2 * PIECE)
    assert await look(tmp_path, long + line("b") + line("a")) == (["duplicate_custom_id"], 3)


async def test_blank_lines_count_and_no_more_is_read_than_it_takes(tmp_path: Path) -> None:
    assert await look(tmp_path, b"\n" * 99 + line("a")) == ([], 1)
    assert await look(tmp_path / "more", b"\n" * 3 * PIECE) == (["too_many_tasks"], 1)
