"""A connection's writing end that gathers what one turn of the event loop writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

BEHIND: Final = 64 * 1024
"""Unsent bytes with which a client is behind: uvicorn waits then, on the signal that uvloop gives at this limit."""

LINGER: Final = 30.0
"""Seconds a closing connection waits for its client to take what is left."""

UNHEARD: Final = 5.0
"""Seconds for which a client may go on sending what is not read any more: a reset would take the answer from it."""


class CorkedTransport(asyncio.Transport):
    """
    The transport uvicorn writes to. A response's head and body leave in one system call instead of two.

    uvloop writes at once when nothing waits: 30 µs of a request's CPU, measured.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, is_sending: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._is_sending = is_sending
        self.unheard = False
        """Whether the connection is only open for its client to read the answer: what comes is to be thrown away."""
        self._parts: list[Any] = []

    def write(self, data: Any) -> None:
        """Take `data`, to be written when the loop comes round."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def write_chunk(self, data: bytes) -> bool:
        """
        Write a piece of a chunked body as uvicorn would; return False, with nothing written, to whoever has to wait.

        No turn of the loop is waited for: nothing follows a stream's frame that could share its system call.
        """
        transport = self._transport
        if self._parts or self.is_closing() or transport.get_write_buffer_size() > BEHIND:
            return False
        if data:  # an empty chunk would be the end of the body
            transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def close(self) -> None:
        """Write what is left, then close; who does not take it in `LINGER` seconds does without."""
        self._flush()
        if self.unheard or self._transport.is_closing():
            return
        if self._is_sending():
            self.unheard = True
            self._transport.write_eof()
            self._transport.resume_reading()
            self._loop.call_later(UNHEARD, self._transport.abort)
            return
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._loop.call_later(LINGER, self._transport.abort)

    def abort(self) -> None:
        """Close at once, and forget what is left."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether the connection is on its way out."""
        return self.unheard or self._transport.is_closing()

    def pause_reading(self) -> None:
        """Stop receiving."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Receive again."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the connection knows of itself."""
        return self._transport.get_extra_info(name, default)

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts = self._parts, []
            if not self.is_closing():  # after `write_eof` a write would raise
                self._transport.write(b"".join(parts))
