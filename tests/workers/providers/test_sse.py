"""Whole events out of bytes as they arrive."""

from __future__ import annotations

import pytest

from pipeline.errors import UpstreamGarbled
from workers.providers._sse import EVENT_LIMIT, EventBuffer, events

STREAM = b'data: {"a":1}\n\n: ping\n\nevent: x\ndata: {"b":"\xc3\xa9"}\n\ndata: [DONE]\n\n'


def test_a_block_that_arrives_whole_is_one_frame() -> None:
    assert EventBuffer().add(STREAM) == STREAM


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 20])
def test_events_are_never_split_whatever_the_pieces(ending: bytes, size: int) -> None:
    stream = STREAM.replace(b"\n", ending)
    buffer = EventBuffer()
    blocks = [block for at in range(0, len(stream), size) if (block := buffer.add(stream[at : at + size]))]
    assert b"".join(blocks) == stream
    assert buffer.rest() == b""
    data = [content for block in blocks for _, content in events(block) if content]
    assert data == [b'{"a":1}', b'{"b":"\xc3\xa9"}', b"[DONE]"]


def test_the_start_of_an_event_is_held_until_its_end() -> None:
    buffer = EventBuffer()
    assert buffer.add(b"data: 1\n\ndata: 2") == b"data: 1\n\n"
    assert buffer.rest() == b"data: 2"
    assert buffer.add(b"\n\n") == b"data: 2\n\n"


def test_data_over_several_lines_is_joined() -> None:
    assert list(events(b"data: a\ndata:b\n\n\ndata\n\n")) == [(0, b"a\nb"), (16, b"")]


def test_an_event_starts_where_the_one_before_ended() -> None:
    for block in (b"data: a\n\n: p\n\ndata: b\n\n", b"data: a\r\n\r\n: p\r\n\r\ndata: b\r\n\r\n"):
        starts = [start for start, _ in events(block)]
        assert block[starts[2] :].strip() == b"data: b"


def test_an_event_over_the_limit_is_refused() -> None:
    buffer = EventBuffer()
    piece = b"x" * 2**20
    for _ in range(EVENT_LIMIT // len(piece)):
        assert buffer.add(piece) == b""
    with pytest.raises(UpstreamGarbled, match="larger than"):
        buffer.add(b"x")
