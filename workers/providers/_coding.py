"""Content codings: what a provider compresses although it was asked not to."""

from __future__ import annotations

import zlib
from typing import Final

from pipeline.errors import UpstreamGarbled
from workers.providers._exchange import too_large

_PIECE: Final = 256 * 2**10
"""Bytes decompressed at a time, however small they were compressed."""
_GZIP_OR_ZLIB: Final = zlib.MAX_WBITS | 32
_PLAIN: Final = frozenset({b"", b"identity"})
_KNOWN: Final = frozenset({b"gzip", b"x-gzip", b"deflate"})


class Decoder:
    """Decompresses gzip and deflate, never more than a piece at a time."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._held = b""
        self._started = False

    def add(self, data: bytes) -> None:
        """Take compressed bytes."""
        self._held += data
        if data and not self._started:
            self._started = True
            if data[0] != 0x1F and data[0] & 0x0F != zlib.DEFLATED:
                self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)  # deflate without its header is common

    def read(self) -> bytes:
        """Return the next bytes that can be told; empty when more must be added. Raises UpstreamGarbled."""
        while self._held:
            if self._inflate.eof:
                self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)  # gzip may have several members
            try:
                data = self._inflate.decompress(self._held, _PIECE)
            except zlib.error:
                raise _undecodable() from None
            self._held = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            if data:
                return data
        return b""

    def close(self) -> None:
        """Take note of the end. Raises UpstreamGarbled when it comes too early."""
        if self._started and not self._inflate.eof:
            raise _undecodable()


def decoder(fields: dict[bytes, bytes], *, error: bool = False) -> Decoder | None:
    """
    Return what decodes a body with these header fields; None when it is plain.

    Raises UpstreamGarbled for an unknown coding, unless it is an `error`'s: that one's status says enough.
    """
    coding = fields.get(b"content-encoding")
    if coding is None or (coding := coding.strip().lower()) in _PLAIN:
        return None
    if coding not in _KNOWN:
        if error:
            return None
        hint = "only gzip and deflate can be read, and neither was asked for"
        raise UpstreamGarbled("the provider's answer is compressed in an unknown way", hint=hint)
    return Decoder()


def decoded(fields: dict[bytes, bytes], body: bytes, limit: int, *, error: bool = False) -> bytes:
    """Return a whole body in plain; of an `error` its beginning. Raises UpstreamGarbled, also over `limit`."""
    coding = decoder(fields, error=error)
    if coding is None:
        return body
    coding.add(body)
    pieces: list[bytes] = []
    size = 0
    while data := coding.read():
        pieces.append(data)
        size += len(data)
        if size > limit:
            if error:
                break
            raise too_large(limit)
    if not error:
        coding.close()
    return b"".join(pieces)


def _undecodable() -> UpstreamGarbled:
    return UpstreamGarbled("the provider's answer cannot be decompressed")
