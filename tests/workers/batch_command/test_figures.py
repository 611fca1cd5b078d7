"""What is said about a batch that runs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipeline.stores.batch_progress import Latency, Progress
from workers.batch_command import figures
from workers.batch_command.gateway import Batch, Counts, Tokens


def batch(**fields: Any) -> Batch:
    usual: dict[str, Any] = {
        "id": "batch_1",
        "status": "in_progress",
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-1",
        "created_at": 0,
        "request_counts": Counts(10_000, 7_398, 14),
    }
    return Batch(**{**usual, **fields})


PROGRESS = Progress(
    open=2_266,
    resting=10,
    retries=31,
    latency_ms=Latency(610.0, 2400.0),
    waiting={"resolve": 12, "dispatch": 1988},
    backing_off={"gpt-4o-mini": 4.0},
    causes={"upstream_rate_limited": 23},
)


def test_the_headline_has_what_is_done_how_fast_and_until_when() -> None:
    words = figures.headline(batch(promptmill=PROGRESS), 412.0)
    assert words == ["7,412/10,000", "412/s", "ok 7,398", "retry 31", "failed 14", "eta 0:06"]


def test_the_details_have_where_lines_are_and_how_the_provider_does() -> None:
    said = figures.details(batch(promptmill=PROGRESS, usage=Tokens(total_tokens=1_234_567)))
    assert said == (
        "backlog 12 resolve, 1,988 dispatch · in flight 256 · resting 10 · p50 0.61s p99 2.4s · "
        "put off by limits 23 (backing off gpt-4o-mini 4s) · 1.2M tokens"
    )


def test_what_a_gateway_does_not_say_is_left_out() -> None:
    assert figures.headline(batch(request_counts=None, status="validating"), 0.0) == ["checking its lines"]
    assert figures.headline(batch(), 0.0) == ["7,412/10,000", "0/s", "ok 7,398", "failed 14"]
    assert figures.headline(batch(), None) == ["7,412/10,000", "ok 7,398", "failed 14"]
    assert figures.headline(batch(status="completed"), 9.0) == ["7,412/10,000", "ok 7,398", "failed 14", "completed"]
    assert figures.details(batch()) == "in flight 0"
    assert figures.details(batch(promptmill=Progress(backing_off={"m": 0.4}))) == "in flight 0 · backing off m 1s"
    assert figures.details(batch(promptmill=Progress(dead=2))) == "in flight 0 · dead 2 (promptmill dead list)"


def test_a_batch_that_stands_still_says_why() -> None:
    waiting = batch(status="validating")
    assert figures.concern(waiting, 1.0) == ""
    assert "promptmill feed" in figures.concern(waiting, 11.0)
    assert "prompt_manager_error" in figures.concern(batch(promptmill=Progress(paused="prompt_manager_error")), 0.0)


def test_lines_that_no_worker_takes_are_wondered_about_after_a_while() -> None:
    untaken = batch(promptmill=Progress(open=50, waiting={"resolve": 0, "dispatch": 50}))
    assert "worker --lane batch dispatch" in figures.concern(untaken, 11.0, 0.0)
    assert [figures.concern(untaken, 9.0, 0.0), figures.concern(untaken, 11.0, 0.1)] == ["", ""]
    assert figures.concern(untaken, 11.0) == "", "what was seen once may be a moment's"
    assert figures.concern(batch(promptmill=Progress(open=51, waiting={"dispatch": 50})), 11.0, 0.0) == ""


def test_lines_that_rest_say_for_want_of_what() -> None:
    causes = {"upstream_rate_limited": 9, "upstream_timeout": 2}
    said = figures.concern(batch(promptmill=Progress(open=2, resting=1, causes=causes)), 0.0)
    assert said == "1 line waits for a later try: upstream_timeout"
    assert figures.concern(batch(promptmill=Progress(open=2, causes=causes)), 0.0) == ""


def test_a_pause_that_the_operator_can_end_says_how() -> None:
    assert "the deployment's key" in figures.concern(batch(promptmill=Progress(paused="model_disabled")), 0.0)


def test_the_pace_is_that_of_the_last_seconds() -> None:
    def done(count: int) -> Batch:
        return batch(request_counts=Counts(2000, count, 0))

    pace = figures.Pace()
    assert pace.see(0.0, done(0)) == 0.0
    assert pace.see(30.0, done(0)) == 0.0
    assert pace.see(40.0, done(100)) == 10.0
    assert pace.see(50.0, done(1100)) == 100.0


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (figures.counted(1, "line", "lines"), "1 line"),
        (figures.counted(1_000, "line", "lines"), "1,000 lines"),
        (figures.clock(6), "0:06"),
        (figures.clock(750), "12:30"),
        (figures.clock(11_040), "3:04:00"),
        (figures.seconds(42), "0.042s"),
        (figures.short(999), "999"),
        (figures.short(1_234), "1.2k"),
        (figures.short(250_000), "250k"),
        (figures.size(417), "417 B"),
        (figures.size(1_500_000), "1.5 MB"),
        (figures.size(450_000), "450 kB"),
        (figures.size(5e9), "5.0 GB"),
    ],
)
def test_numbers_are_for_people(said: str, text: str) -> None:
    assert said == text


def test_a_batch_object_without_our_key_is_read() -> None:
    plain = {"id": "batch_1", "status": "completed", "endpoint": "/v1/x", "input_file_id": "file-1", "created_at": 1}
    found = msgspec.convert({**plain, "in_progress_at": 3, "completed_at": 10, "object": "batch"}, Batch)
    assert (found.ended, found.seconds, found.done, found.promptmill) == (True, 7, 0, None)
