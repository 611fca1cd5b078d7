"""What is taken out of other people's words, and that no text takes long to look through."""

from __future__ import annotations

import time

import pytest

from pipeline.redaction import redact

LENGTH = 20_000


def seconds(text: str) -> float:
    """Return the least CPU time of three runs."""
    return min(_once(text) for _ in range(3))


def _once(text: str) -> float:
    began = time.process_time()
    redact(text)
    return time.process_time() - began


@pytest.mark.parametrize(
    "piece",
    [
        *("a", "a-", "a*", "a**", "**a", " ", "bearer ", "bearer", "sk-", "sk-a ", "AKIA0", "AIza-"),
        *("eyJ", "eyJaaaaaaaa-", "eyJaaaaaaaa.-", "://", "://a", "://:@ "),
    ],
)
def test_no_text_takes_much_longer_than_any_other_of_its_length(piece: str) -> None:
    ordinary = seconds("words of a text " * (LENGTH // 16))
    assert seconds((piece * LENGTH)[:LENGTH]) < 20 * ordinary


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("key abc-d***wxyz refused", "key [redacted] refused"),
        ("key ****wxyz refused", "key [redacted] refused"),
        ("a*b, c**d and 2 * 3 ** 4", "a*b, c**d and 2 * 3 ** 4"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln.", "token [redacted]"),
        ("x-eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0", "x-[redacted]"),
        ("cut in its head: eyJhbGciOiJIUzI1", "cut in its head: [redacted]"),
    ],
)
def test_what_looks_like_a_key_is_taken_out(text: str, cleaned: str) -> None:
    assert redact(text) == cleaned
