"""Batches as files: what was asked for, who works on it, and how far it is; each file has one writer."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Final

import msgspec

from pipeline.errors import NotFound
from pipeline.stores.batch_lines import LineError
from pipeline.stores.batch_progress import Progress
from pipeline.stores.blobs import Blobs
from pipeline.stores.files import Viewer, new_file_id

WINDOW: Final = 24 * 3600
"""Seconds a batch has: OpenAI's only `completion_window`."""

TERMINAL: Final = frozenset(["completed", "failed", "expired", "cancelled"])

_ID: Final = re.compile(r"batch_[0-9a-f]{32}", re.ASCII)
_KEPT: Final = re.compile(r"(batch_[0-9a-f]{32})-(request|cancel|claim|record)(?:-(\d{1,9}))?", re.ASCII)


class BatchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for. The ingress writes it once; the results' file ids are chosen with it."""

    id: str
    owner: str
    """Name of the key that made it; empty on a gateway without keys."""
    allowed_models: tuple[str, ...] = ()
    """Model names or wildcards the key may use; empty: all."""
    endpoint: str
    input_file_id: str
    output_file_id: str
    error_file_id: str
    created: float
    """Seconds since 1970."""
    expires: float
    metadata: dict[str, str] | None = None
    output_expires_after: int | None = None
    """Seconds the output files are kept; None: for ever."""

    @property
    def hex(self) -> str:
        """The id without its prefix."""
        return self.id.removeprefix("batch_")


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


class BatchState(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as its files say it is."""

    request: BatchRequest
    record: Record = Record(owner=0)
    claims: int = 0
    """How many owners it has had."""
    cancelled: int | None = None
    """When its client cancelled it, in seconds since 1970."""


class BatchStore:
    """All batches of a gateway. Several processes have one each: the blobs are the only truth."""

    def __init__(self, blobs: Blobs, now: Callable[[], float] = time.time) -> None:
        self.blobs = blobs
        self._now = now
        self._requests: dict[str, BatchRequest] = {}
        """They do not change, so each is read once."""
        self._ended: set[str] = set()

    async def create(
        self,
        owner: str,
        endpoint: str,
        input_file_id: str,
        *,
        allowed_models: tuple[str, ...] = (),
        window: float = WINDOW,
        metadata: dict[str, str] | None = None,
        output_expires_after: int | None = None,
    ) -> BatchState:
        """Make a batch that has `window` seconds. Raises StorageFull."""
        now = self._now()
        request = BatchRequest(
            id=f"batch_{secrets.token_hex(16)}",
            owner=owner,
            allowed_models=allowed_models,
            endpoint=endpoint,
            input_file_id=input_file_id,
            output_file_id=new_file_id(),
            error_file_id=new_file_id(),
            created=now,
            expires=now + window,
            metadata=metadata,
            output_expires_after=output_expires_after,
        )
        await self.blobs.create(f"{request.id}-request", _encode(request))
        return BatchState(request=request)

    async def get(self, batch_id: str, viewer: Viewer) -> BatchState:
        """Return a batch. Raises NotFound, in the same words for every reason."""
        if _ID.fullmatch(batch_id):
            # Read anew each time: or what is another's would be refused sooner than what does not exist.
            for data in (await self.blobs.fetch([f"{batch_id}-request"])).values():
                request = _decode_request(data)
                if viewer in (None, request.owner):
                    return (await self.states([request]))[0]
        raise no_such_batch()

    async def page(self, viewer: Viewer, after: str | None, limit: int) -> tuple[list[BatchState], bool]:
        """Return a page of batches, newest first, and whether more follow. Raises NotFound for an unknown id."""
        found = [r for r in (await self._all()).values() if viewer in (None, r.owner)]
        found.sort(key=attrgetter("created", "id"), reverse=True)
        begin = 0
        if after is not None:
            begin = next((n for n, r in enumerate(found, 1) if r.id == after), 0)
            if not begin:
                raise no_such_batch()
        return await self.states(found[begin : begin + limit]), len(found) > begin + limit

    async def cancel(self, state: BatchState) -> BatchState:
        """Ask for the end of a batch, once; a terminal one stays as it is. Raises StorageFull."""
        if not state.record.terminal:
            await self.blobs.create(f"{state.request.id}-cancel", str(int(self._now())).encode())
        return (await self.states([state.request]))[0]

    async def cancelled(self, batch_id: str) -> int | None:
        """Return when a batch was cancelled, in seconds since 1970."""
        said = await self.blobs.fetch([f"{batch_id}-cancel"])
        return next((int(data) for data in said.values()), None)

    async def unfinished(self) -> list[BatchState]:
        """Return every batch that is not terminal, oldest first."""
        requests = [request for name, request in (await self._all()).items() if name not in self._ended]
        states = await self.states(sorted(requests, key=attrgetter("created", "id")))
        self._ended |= {state.request.id for state in states if state.record.terminal}
        return [state for state in states if not state.record.terminal]

    async def made_by(self, owner: str) -> list[BatchRequest]:
        """Return what a key has asked for."""
        return [request for request in (await self._all()).values() if request.owner == owner]

    async def are_open(self, requests: Iterable[BatchRequest], count: int) -> bool:
        """Whether at least `count` of these batches are not terminal."""
        asked = [request for request in requests if request.id not in self._ended]
        if len(asked) < count:
            return False
        states = await self.states(asked)
        self._ended |= {state.request.id for state in states if state.record.terminal}
        return sum(not state.record.terminal for state in states) >= count

    async def claim(self, state: BatchState) -> int:
        """Become the next owner of a batch and return its number; 0 if somebody else did. Raises StorageFull."""
        number = state.claims + 1
        made = await self.blobs.create(f"{state.request.id}-claim-{number}", b"")
        return number if made else 0

    async def superseded(self, batch_id: str, owner: int) -> bool:
        """Whether a batch has a later owner: this one must not write for it any more."""
        return bool(await self.blobs.fetch([f"{batch_id}-claim-{owner + 1}"]))

    async def save(self, batch_id: str, record: Record) -> None:
        """Write an owner's record, all of it or nothing. Raises StorageFull."""
        await self.blobs.replace(f"{batch_id}-record-{record.owner}", _encode(record))

    async def states(self, requests: Iterable[BatchRequest]) -> list[BatchState]:
        """Return the batches of `requests` as they are now."""
        wanted = {request.id: request for request in requests}
        claims, records, cancels = dict.fromkeys(wanted, 0), dict.fromkeys(wanted, 0), []
        prefix = next(iter(wanted), "") if len(wanted) < 2 else ""
        for name in await self.blobs.names(prefix):
            found = _KEPT.fullmatch(name)
            if found is None or found[1] not in wanted:
                continue
            if found[2] == "cancel":
                cancels.append(name)
            elif found[3] and found[2] in ("claim", "record"):
                highest = claims if found[2] == "claim" else records
                highest[found[1]] = max(highest[found[1]], int(found[3]))
        written = [f"{batch}-record-{number}" for batch, number in records.items() if number]
        said = await self.blobs.fetch([*written, *cancels])
        found_states = []
        for name, request in wanted.items():
            record, cancel = said.get(f"{name}-record-{records[name]}"), said.get(f"{name}-cancel")
            found_states.append(
                BatchState(
                    request=request,
                    record=_decode_record(record) if record else Record(owner=0),
                    claims=claims[name],
                    cancelled=int(cancel) if cancel else None,
                )
            )
        return found_states

    async def _all(self) -> dict[str, BatchRequest]:
        found = (_KEPT.fullmatch(name) for name in await self.blobs.names())
        there = [match[1] for match in found if match is not None and match[2] == "request"]
        return await self._read_requests(there)

    async def _read_requests(self, ids: list[str]) -> dict[str, BatchRequest]:
        missing = [f"{name}-request" for name in ids if name not in self._requests]
        for data in (await self.blobs.fetch(missing)).values():
            request = _decode_request(data)
            self._requests[request.id] = request
        return {name: self._requests[name] for name in ids if name in self._requests}


def no_such_batch() -> NotFound:
    """Return the error for what is not there; in the same words for every reason, or it would tell what others have."""
    return NotFound("there is no such batch; `GET /v1/batches` lists those of your key", param="id")


_encode: Final = msgspec.json.Encoder().encode
_decode_request: Final = msgspec.json.Decoder(BatchRequest).decode
_decode_record: Final = msgspec.json.Decoder(Record).decode
