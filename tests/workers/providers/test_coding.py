"""Compressed answers: read whole, bounded, and never half."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest

from pipeline.errors import UpstreamGarbled
from workers.providers._coding import Decoder, decoded, decoder

TEXT = b'{"text":"' + b"abc " * 500 + b'"}'
GZIPPED = gzip.compress(TEXT, mtime=0)  # without the time in it, so that test names stay the same


def deflated() -> bytes:
    compress = zlib.compressobj(wbits=-15)
    return compress.compress(TEXT) + compress.flush()


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        (b"", TEXT),
        (b" Identity", TEXT),
        (b"gzip", gzip.compress(TEXT, mtime=0)),
        (b"X-GZIP ", gzip.compress(TEXT, mtime=0)),
        (b"gzip", gzip.compress(TEXT[:100], mtime=0) + gzip.compress(TEXT[100:], mtime=0)),
        (b"deflate", zlib.compress(TEXT)),
        (b"deflate", deflated()),
    ],
)
def test_a_body_is_read_in_plain(coding: bytes, data: bytes) -> None:
    assert decoded({b"content-encoding": coding}, data, 10_000) == TEXT


def test_a_body_that_arrives_byte_by_byte_is_the_same() -> None:
    for data in (gzip.compress(TEXT[:9], mtime=0) + gzip.compress(TEXT[9:], mtime=0), deflated()):
        coding = Decoder()
        plain = b""
        for byte in data:
            coding.add(bytes([byte]))
            while piece := coding.read():
                plain += piece
        coding.close()
        assert plain == TEXT


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, gzip", b"gzip, br"])
def test_a_coding_nobody_asked_for_is_garbled(coding: bytes) -> None:
    with pytest.raises(UpstreamGarbled, match="unknown way"):
        decoder({b"content-encoding": coding})
    assert decoded({b"content-encoding": coding}, b"abc", 10, error=True) == b"abc"


@pytest.mark.parametrize(
    "data", [b"not gzip", GZIPPED[:-9], GZIPPED[:-8] + b"12345678", GZIPPED + b"x"], ids=["text", "cut", "sum", "rest"]
)
def test_a_body_that_is_not_what_it_says_is_garbled(data: bytes) -> None:
    with pytest.raises(UpstreamGarbled, match="cannot be decompressed"):
        decoded({b"content-encoding": b"gzip"}, data, 10_000)


def test_an_empty_body_needs_no_coding() -> None:
    assert decoded({b"content-encoding": b"gzip"}, b"", 10) == b""


def test_the_beginning_of_an_error_is_enough() -> None:
    data = gzip.compress(TEXT, mtime=0)
    assert TEXT.startswith(decoded({b"content-encoding": b"gzip"}, data[:-20], 10_000, error=True))
    assert decoded({b"content-encoding": b"gzip"}, gzip.compress(b" " * 10**7, mtime=0), 1, error=True) == b" " * 2**18


def test_a_bomb_is_refused_before_it_fills_the_memory() -> None:
    bomb = gzip.compress(b" " * 100_000_000, 9, mtime=0)
    tracemalloc.start()
    try:
        with pytest.raises(UpstreamGarbled, match="larger than 1000000 bytes"):
            decoded({b"content-encoding": b"gzip"}, bomb, 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
