"""What providers say is left of their limits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from workers.providers._remaining import remaining

LEFT, RESET = b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        (b"1s", 1),
        (b"6m0s", 360),
        (b"20ms", 0.02),
        (b"2m59.56s", 179.56),
        (b"1d2h", 93600),
        (b" 7 ", 7),
        (b"0", 0),
    ],
)
def test_openais_words_are_read(reset: bytes, seconds: float) -> None:
    found = remaining({LEFT: b"59", RESET: reset})
    assert found is not None
    assert found.calls == 59
    assert found.seconds == pytest.approx(seconds)


def test_anthropics_words_are_read() -> None:
    at = (datetime.now(UTC) + timedelta(seconds=40)).strftime("%Y-%m-%dT%H:%M:%SZ")
    fields = {
        b"anthropic-ratelimit-requests-remaining": b"7",
        b"anthropic-ratelimit-requests-reset": at.encode(),
    }
    found = remaining(fields)
    assert found is not None
    assert found.calls == 7
    assert found.seconds == pytest.approx(40, abs=2)
    past = remaining({**fields, b"anthropic-ratelimit-requests-reset": b"2020-01-01T00:00:00Z"})
    assert past is not None
    assert past.seconds == 0


@pytest.mark.parametrize(
    "reset", [b"", b"soon", b"-1s", b"1e9", b"nan", b"s", b"1s" * 40, b"2030-01-01T00:00:00", b"\xff", "१s".encode()]
)
def test_a_reset_that_cannot_be_read_leaves_the_count(reset: bytes) -> None:
    assert remaining({LEFT: b"3", RESET: reset}) == (3, None)
    assert remaining({LEFT: b"3"}) == (3, None)


@pytest.mark.parametrize("count", [b"", b"-1", b"1.5", b"many", b"9" * 5000, b"\xb2"])
def test_a_count_that_cannot_be_read_is_none(count: bytes) -> None:
    assert remaining({LEFT: count, RESET: b"1s"}) is None


def test_an_answer_without_such_headers_says_nothing() -> None:
    assert remaining({b"content-type": b"application/json", b"x-ratelimit-remaining-tokens": b"0"}) is None
