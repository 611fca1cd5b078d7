"""What one turn of the loop writes goes out together; a chunk goes at once, or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from ingress.corked import BEHIND, CorkedTransport

pytestmark = pytest.mark.anyio


class Wire:
    """What stands below; `unsent` is what it says of its buffer."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.unsent = 0
        self.closed = False
        self.ended = False

    def write(self, data: bytes) -> None:
        if self.ended:
            raise RuntimeError("uvloop says so")
        self.written.append(data)

    def write_eof(self) -> None:
        self.ended = True

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        if self.closed:
            raise RuntimeError("uvloop says so")
        return self.unsent


def corked(wire: Any) -> CorkedTransport:
    return CorkedTransport(wire, asyncio.get_running_loop(), lambda: False)


async def test_what_one_turn_writes_goes_out_in_one_piece() -> None:
    wire = Wire()
    transport = corked(wire)
    transport.write(b"head ")
    transport.write(b"body")
    assert wire.written == []
    await anyio.lowlevel.checkpoint()
    assert wire.written == [b"head body"]


async def test_a_chunk_is_framed_and_goes_at_once() -> None:
    wire = Wire()
    assert corked(wire).write_chunk(b"data: 0123456789\n\n")
    assert wire.written == [b"12\r\ndata: 0123456789\n\n\r\n"]


async def test_an_empty_chunk_does_not_end_the_body() -> None:
    wire = Wire()
    assert corked(wire).write_chunk(b"")
    assert wire.written == []


async def test_a_chunk_overtakes_nothing() -> None:
    wire = Wire()
    transport = corked(wire)
    transport.write(b"head")
    assert not transport.write_chunk(b"chunk")
    await anyio.lowlevel.checkpoint()
    assert wire.written == [b"head"]
    assert transport.write_chunk(b"chunk")


async def test_a_client_that_is_behind_gets_no_chunk() -> None:
    wire = Wire()
    wire.unsent = BEHIND + 1
    assert not corked(wire).write_chunk(b"chunk")
    wire.unsent = BEHIND
    assert corked(wire).write_chunk(b"chunk")


async def test_a_client_that_is_gone_gets_no_chunk() -> None:
    wire = Wire()
    wire.closed = True
    assert not corked(wire).write_chunk(b"chunk")
    assert wire.written == []


async def test_nothing_is_written_after_the_end_while_a_client_still_sends() -> None:
    wire = Wire()
    transport = CorkedTransport(wire, asyncio.get_running_loop(), lambda: True)  # type: ignore[arg-type]
    transport.close()
    assert not transport.write_chunk(b"chunk")
    transport.write(b"late")
    transport._flush()
    assert wire.ended
    assert wire.written == []
