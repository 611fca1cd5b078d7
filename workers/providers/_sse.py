"""Server-sent events: bytes in as they arrive, whole events out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pipeline.errors import UpstreamGarbled

EVENT_LIMIT: Final = 8 * 2**20
"""Bytes one event may have."""

_ENDS: Final = (b"\n\n", b"\n\r\n", b"\r\r")


class EventBuffer:
    """Holds the beginning of an event until its end arrives."""

    def __init__(self) -> None:
        self._held = bytearray()

    def add(self, data: bytes) -> bytes:
        """Return the events that `data` completes, as one block. Raises UpstreamGarbled over EVENT_LIMIT."""
        if not self._held and data.endswith(b"\n\n"):
            return data
        known = max(0, len(self._held) - 2)  # an end may have begun in what is held
        self._held += data
        end = max(-1 if (at := self._held.rfind(mark, known)) < 0 else at + len(mark) for mark in _ENDS)
        if end < 0:
            block = b""
        else:
            block = bytes(self._held[:end])
            del self._held[:end]
        if len(self._held) > EVENT_LIMIT:
            raise UpstreamGarbled(f"an event of the stream is larger than {EVENT_LIMIT} bytes")
        return block

    def rest(self) -> bytes:
        """Return what is held of an event that never ended."""
        return bytes(self._held)


def events(block: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each event of a block: where it starts, and its data ('' for comments and pings)."""
    if b"\r" in block:
        # Only a host with other line ends pays for the slow way.
        yield from _events_slowly(block)
        return
    start = 0
    while (end := block.find(b"\n\n", start)) >= 0:
        yield start, _data(block[start:end])
        start = end + 2


def _data(event: bytes) -> bytes:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)


def _events_slowly(block: bytes) -> Iterator[tuple[int, bytes]]:
    start = at = 0
    lines: list[bytes] = []
    for line in block.splitlines(keepends=True):
        at += len(line)
        if text := line.rstrip(b"\r\n"):
            lines.append(text)
        else:
            yield start, _data(b"\n".join(lines))
            start, lines = at, []
