"""What is said of a batch that has ended."""

from __future__ import annotations

import msgspec
import pytest

from pipeline.stores.batch_lines import LineError
from pipeline.stores.batch_progress import Progress
from workers.batch_command import summary
from workers.batch_command.causes import Group, table, told
from workers.batch_command.gateway import Batch, Counts, Errors, Tokens
from workers.batch_command.places import Place

ENDED = Batch(
    id="batch_1",
    status="completed",
    endpoint="/v1/chat/completions",
    input_file_id="file-1",
    created_at=0,
    in_progress_at=10,
    completed_at=34,
    output_file_id="file-2",
    request_counts=Counts(10_000, 9_986, 14),
    usage=Tokens(900_000, 300_000, 1_200_000),
)


def test_a_summary_has_lines_pace_tokens_and_failures_by_cause() -> None:
    failures = [Group(code="too_long", status=400, count=14, example="too long", hint="correct the line")]
    said = summary.summary(ENDED, failures)
    assert summary.lines(said) == [
        "9,986 of 10,000 lines answered in 0:24 (417 lines/s), 1.2M tokens (900k in, 300k out)",
        "14 lines failed:",
        "       14  too_long  (400)  too long",
        "           correct the line",
        "batch     batch_1  (completed)",
    ]
    assert summary.exit_code(ENDED) == 1


def test_a_batch_that_lost_its_input_says_so_beside_its_results() -> None:
    error = LineError("input_file_not_found", "The input file does not exist any more.")
    failed = msgspec.structs.replace(ENDED, status="failed", errors=Errors((error,)))
    said = summary.summary(failed)
    assert summary.lines(said)[-1] == "batch     batch_1  (failed: The input file does not exist any more.)"
    assert summary.exit_code(failed) == 1
    assert summary.exit_code(msgspec.structs.replace(failed, output_file_id=None)) == 2, "nothing of it ran"


def test_of_many_wrong_lines_the_first_are_named() -> None:
    errors = Errors(tuple(LineError("invalid_url", "no", "url", number) for number in range(1, 41)))
    place = Place(data_dir="some where", key="sk-mine")
    error = summary.refused(msgspec.structs.replace(ENDED, errors=errors), "in.jsonl", place, lambda line: line + 100)
    first, line, *_, last = error.message.splitlines()
    assert first == "in.jsonl cannot run, and nothing of it has:"
    assert line == "  line 101: no (invalid_url, url)"
    assert last == "  and 30 more: promptmill batch status batch_1 --json --data-dir 'some where'"


@pytest.mark.parametrize(
    ("entry", "reason", "hint"),
    [
        (
            {"response": None, "error": {"code": "batch_expired", "message": "late"}},
            "batch_expired: late",
            "this runs only",
        ),
        ({"response": {"status_code": 429, "body": {"error": {"type": "slow"}}}}, "slow", ""),
        ({"response": {"status_code": 400, "body": {"error": {"code": "c", "hint": "do this"}}}}, "c", "do this"),
        ({"response": {"status_code": 400, "body": {}}}, "unknown", "the provider refused"),
    ],
)
def test_a_failed_line_has_a_reason_and_what_to_do(entry: dict[str, object], reason: str, hint: str) -> None:
    cause = told(entry, "this")
    assert cause.reason == reason
    assert hint in cause.hint
    assert bool(cause.hint) == bool(hint)


def test_a_line_that_had_no_answer_has_no_status() -> None:
    assert table([Group(code="batch_expired", status=0, count=3)]) == ["        3  batch_expired  (no answer)"]


def test_of_failures_that_are_only_counted_no_status_is_told() -> None:
    ended = msgspec.structs.replace(ENDED, promptmill=Progress(failures={"upstream_rejected": 14}))
    assert "       14  upstream_rejected" in summary.lines(summary.summary(ended))
