"""
OpenAI's published schema of files and batches, as far as it can be checked: keys, types, values, ranges.

After `Batch`, `BatchRequestOutput`, `OpenAIFile`, `ListFilesResponse`, `ListBatchesResponse` and `DeleteFileResponse`
of OpenAI's OpenAPI description, and the types of openai-python 3. Stricter in one thing: every key has to be there.
Null stands for what there is not, as in OpenAI's own examples. Only `promptmill` is our own.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

Stamp = Annotated[int, msgspec.Meta(ge=1_500_000_000, le=10_000_000_000)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(min_length=1)]
FileId = Annotated[str, msgspec.Meta(pattern=r"^file-[0-9a-f]{32}$")]
BatchId = Annotated[str, msgspec.Meta(pattern=r"^batch_[0-9a-f]{32}$")]
Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]  # fmt: skip
Endpoint = Literal[
    "/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions", "/v1/moderations"
]  # fmt: skip


class _Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Has each of its keys and no other."""


class File(_Shape, frozen=True):
    """A file."""

    id: FileId
    object: Literal["file"]
    bytes: Count
    created_at: Stamp
    expires_at: Stamp | None
    filename: Text
    purpose: Literal["batch", "batch_output", "user_data"]
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None


class Deleted(_Shape, frozen=True):
    """What is said of a file that was deleted."""

    id: FileId
    object: Literal["file"]
    deleted: bool


class BatchError(_Shape, frozen=True):
    """What is wrong with a batch, or with one of its lines."""

    code: Text
    message: Text
    param: str | None
    line: Annotated[int, msgspec.Meta(ge=1)] | None


class BatchErrors(_Shape, frozen=True):
    """All that is wrong with a batch."""

    object: Literal["list"]
    data: Annotated[list[BatchError], msgspec.Meta(min_length=1)]


class Counts(_Shape, frozen=True):
    """How many lines have which outcome."""

    total: Count
    completed: Count
    failed: Count


class InputDetails(_Shape, frozen=True):
    """Of input tokens."""

    cached_tokens: Count


class OutputDetails(_Shape, frozen=True):
    """Of output tokens."""

    reasoning_tokens: Count


class Usage(_Shape, frozen=True):
    """Tokens of a batch."""

    input_tokens: Count
    input_tokens_details: InputDetails
    output_tokens: Count
    output_tokens_details: OutputDetails
    total_tokens: Count


class Batch(_Shape, frozen=True):
    """A batch."""

    id: BatchId
    object: Literal["batch"]
    endpoint: Endpoint
    model: str | None
    errors: BatchErrors | None
    input_file_id: FileId
    completion_window: Literal["24h"]
    status: Status
    output_file_id: FileId | None
    error_file_id: FileId | None
    created_at: Stamp
    in_progress_at: Stamp | None
    expires_at: Stamp | None
    finalizing_at: Stamp | None
    completed_at: Stamp | None
    failed_at: Stamp | None
    expired_at: Stamp | None
    cancelling_at: Stamp | None
    cancelled_at: Stamp | None
    request_counts: Counts
    usage: Usage
    metadata: (
        Annotated[
            dict[Annotated[str, msgspec.Meta(max_length=64)], Annotated[str, msgspec.Meta(max_length=512)]],
            msgspec.Meta(max_length=16),
        ]
        | None
    )
    promptmill: Any = None


class Response(_Shape, frozen=True):
    """What a line was answered."""

    status_code: Annotated[int, msgspec.Meta(ge=200, le=599)]
    request_id: Annotated[str, msgspec.Meta(pattern="^req_")]
    body: dict[str, Any]


class LineError(_Shape, frozen=True):
    """Why a line was never run."""

    code: Text
    message: Text


class OutputLine(_Shape, frozen=True):
    """A line of an output or error file."""

    id: Annotated[str, msgspec.Meta(pattern="^batch_req_")]
    custom_id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    response: Response | None
    error: LineError | None
    promptmill: Any = None


class Page(_Shape, frozen=True):
    """A page of a list."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


BEFORE: Final = {
    "validating": (),
    "failed": (),
    "in_progress": ("in_progress_at",),
    "finalizing": ("in_progress_at", "finalizing_at"),
    "completed": ("in_progress_at", "finalizing_at", "completed_at"),
    "expired": (),
    "cancelling": ("cancelling_at",),
    "cancelled": ("cancelling_at", "cancelled_at"),
}
"""Times that a batch of each status has, beside the one when it was reached."""

ENDS: Final = {"completed", "failed", "expired", "cancelled"}


def check_batch(value: Any) -> None:
    """Fail unless `value` is a batch as OpenAI would show it."""
    batch = msgspec.convert(value, Batch)
    assert all(value[name] is not None for name in BEFORE[batch.status]), f"{batch.status} without its times"
    for end in ENDS:
        assert (value[f"{end}_at"] is not None) == (batch.status == end), f"{batch.status}, and {end}_at"
    stamps = [value[f"{name}_at"] for name in ("created", "in_progress", "finalizing", "completed")]
    reached = [stamp for stamp in stamps if stamp is not None]
    assert reached == sorted(reached), "times go backwards"
    counts, usage = batch.request_counts, batch.usage
    assert counts.completed + counts.failed <= counts.total
    if batch.status != "cancelled":  # it may have failed at the same time
        assert (batch.errors is not None) == (batch.status == "failed"), "only a batch that failed has errors"
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    if batch.status == "completed":
        assert counts.completed + counts.failed == counts.total
    if batch.status in ENDS:
        assert (batch.output_file_id is not None) == (counts.completed > 0)
        assert (batch.error_file_id is not None) == (counts.failed > 0)
    else:
        assert batch.output_file_id is batch.error_file_id is None


def check_file(value: Any) -> None:
    """Fail unless `value` is a file as OpenAI would show it."""
    file = msgspec.convert(value, File)
    assert file.expires_at is None or file.expires_at > file.created_at


def check_deleted(value: Any) -> None:
    """Fail unless `value` says that a file was deleted."""
    assert msgspec.convert(value, Deleted).deleted


def check_page(value: Any) -> None:
    """Fail unless `value` is a page of files or of batches."""
    page = msgspec.convert(value, Page)
    for item in page.data:
        (check_file if item["object"] == "file" else check_batch)(item)
    ends = (page.data[0]["id"], page.data[-1]["id"]) if page.data else (None, None)
    assert (page.first_id, page.last_id) == ends


def check_line(value: Any, *, failed: bool) -> None:
    """Fail unless `value` is a line of an output file, or of an error file."""
    line = msgspec.convert(value, OutputLine)
    assert (line.response is None) != (line.error is None), "a line has an answer or was not run"
    if line.response is not None:
        assert (line.response.status_code >= 400) == failed
        if failed:
            assert {"message", "type", "param", "code"} <= set(line.response.body["error"])
    else:
        assert failed
