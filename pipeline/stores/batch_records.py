"""What is known of a batch: what was asked for, how far it is, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import msgspec

from pipeline import logs
from pipeline.stores.batch_lines import LineError
from pipeline.stores.batch_progress import Progress

TERMINAL: Final = frozenset(["completed", "failed", "expired", "cancelled"])

T = TypeVar("T")

log = logs.logger("batches")


class BatchOrder(msgspec.Struct, frozen=True):
    """What a client asks for, as the ingress hands it to the store."""

    owner: str
    """Name of the key that makes it; empty on a gateway without keys."""
    endpoint: str
    input_file_id: str
    allowed_models: tuple[str, ...] = ()
    """Model names or wildcards the key may use; empty: all."""
    metadata: dict[str, str] | None = None
    output_expires_after: int | None = None
    """Seconds the output files are kept; None: as long as other output files."""
    config: str = ""
    """Digest of the configuration it is made under."""


class BatchRequest(BatchOrder, frozen=True, kw_only=True):
    """A batch that was ordered. The ingress writes it once; the results' file ids are chosen with it."""

    id: str
    output_file_id: str
    error_file_id: str
    created: float
    """Seconds since 1970."""
    expires: float

    @property
    def hex(self) -> str:
        """The id without its prefix."""
        return hex_of(self.id)


class Usage(msgspec.Struct, kw_only=True):
    """Tokens, as providers counted them."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def add(self, other: Usage) -> None:
        """Count another's tokens as well."""
        self.input_tokens += other.input_tokens
        self.cached_tokens += other.cached_tokens
        self.output_tokens += other.output_tokens
        self.reasoning_tokens += other.reasoning_tokens


class Part(msgspec.Struct, frozen=True, array_like=True):
    """What one owner wrote, as far as it counts: bytes of its results and of its errors."""

    owner: int
    results: int
    errors: int


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A batch as its owner knows it. Only the highest-numbered owner's counts, and a terminal one is the last."""

    owner: int
    status: str = "validating"
    fed: int = 0
    """Highest number of a line that may have been handed to the pipeline."""
    parts: tuple[Part, ...] = ()
    """What earlier owners wrote, as this one found it; what they write later counts for nothing."""
    total: int = 0
    completed: int = 0
    failed: int = 0
    usage: Usage | None = None
    errors: tuple[LineError, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    times: Mapping[str, int] = {}
    """When a status was reached: `in_progress_at` and the like."""
    progress: Progress = Progress()

    @property
    def terminal(self) -> bool:
        """Whether nothing changes any more."""
        return self.status in TERMINAL


class BatchState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A batch as its files say it is. Of one that has ended it is what is kept."""

    request: BatchRequest
    record: Record = Record(owner=0)
    claims: int = 0
    """How many owners it has had."""
    cancelled: int | None = None
    """When its client cancelled it, in seconds since 1970."""


def hex_of(batch_id: str) -> str:
    """Return the id of a batch without its prefix."""
    return batch_id.removeprefix("batch_")


class _Kept(msgspec.Struct, frozen=True):
    """Of a kept state what many are looked through for: the rest of it is skipped."""

    request: BatchRequest


def decode_kept(data: bytes) -> BatchRequest:
    """Return the request in a kept state. Raises ValueError."""
    return _decode_kept(data).request


def readable(decode: Callable[[bytes], T], blobs: Mapping[str, bytes]) -> dict[str, T]:
    """Return what these blobs say, without those that say nothing: the other batches go on."""
    found = {}
    for name, data in blobs.items():
        try:
            found[name] = decode(data)
        except ValueError as error:  # a broken disk, or somebody's hand
            log.error("batch unreadable", blob=name, error=str(error))
    return found


encode: Final = msgspec.json.Encoder().encode
decode_request: Final = msgspec.json.Decoder(BatchRequest).decode
decode_record: Final = msgspec.json.Decoder(Record).decode
decode_state: Final = msgspec.json.Decoder(BatchState).decode
_decode_kept: Final = msgspec.json.Decoder(_Kept).decode
