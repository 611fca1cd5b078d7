"""Batches as files: each file has one writer, and of a batch that has ended one file stays."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable
from typing import Final, NamedTuple

import msgspec

from pipeline import logs
from pipeline.errors import NotFound
from pipeline.stores.batch_records import (
    BatchOrder,
    BatchRequest,
    BatchState,
    Record,
    decode_kept,
    decode_record,
    decode_request,
    decode_state,
    encode,
    readable,
)
from pipeline.stores.blobs import ABANDONED, Blobs, sweep_abandoned
from pipeline.stores.files import Viewer, new_file_id
from pipeline.stores.headings import Heading, Headings

WINDOW: Final = 24 * 3600
"""Seconds a batch has: OpenAI's only `completion_window`."""

ENDED: Final = "ended"
"""Where the batches are that have ended."""

REQUEST: Final = "-request"
"""What the name of a batch's first file ends with, which is removed first when it is put away."""

CANCEL: Final = "-cancel"
"""What the name of its cancellation ends with; an empty one says that it cannot be cancelled any more."""

_ID: Final = re.compile(r"batch_[0-9a-f]{32}", re.ASCII)
_KEPT: Final = re.compile(r"(batch_[0-9a-f]{32})-(?:request|cancel|(?:claim|record)-\d{1,9})", re.ASCII)

log = logs.logger("batches")


class Stand(NamedTuple):
    """How far an unfinished batch is, as the names of its files tell."""

    begun: bool
    """Whether it has had an owner."""
    ending: bool
    """Whether it was cancelled, or its owner had come to its end."""


class BatchStore:
    """All batches of a gateway. Several processes have one each: the blobs are the only truth."""

    def __init__(self, blobs: Blobs, now: Callable[[], float] = time.time) -> None:
        self.blobs = blobs
        self._ended = blobs.below(ENDED)
        self._now = now
        self._unended = Headings(blobs, decode_request)
        self._past = Headings(self._ended, decode_kept)
        self._seen: dict[str, tuple[int, int]] = {}
        """Claims and highest record of unfinished batches, as found the last time: they only grow."""

    async def create(self, order: BatchOrder, *, window: float = WINDOW) -> BatchState:
        """Make a batch that has `window` seconds. Raises StorageFull."""
        now = self._now()
        request = BatchRequest(
            **msgspec.structs.asdict(order),
            id=f"batch_{secrets.token_hex(16)}",
            output_file_id=new_file_id(),
            error_file_id=new_file_id(),
            created=now,
            expires=now + window,
        )
        await self.blobs.create(f"{request.id}{REQUEST}", encode(request))
        return BatchState(request=request)

    async def get(self, batch_id: str, viewer: Viewer) -> BatchState:
        """Return what `viewer` may see. Raises NotFound, in the same words for every reason."""
        if _ID.fullmatch(batch_id):
            # Both are read in any case: or what is another's would be refused sooner than what does not exist.
            live, ended = await self.blobs.fetch([f"{batch_id}{REQUEST}"]), await self._ended.fetch([batch_id])
            requests = readable(decode_request, live) | readable(decode_kept, ended)
            if any(viewer in (None, request.owner) for request in requests.values()):
                for state in await self.states([batch_id]):
                    return state
        raise no_such_batch()

    async def page(self, viewer: Viewer, after: str | None, limit: int) -> tuple[list[BatchState], bool]:
        """Return a page of batches, newest first, and whether more follow. Raises NotFound for an unknown id."""
        await self._look_at_all()
        end = None
        if after is not None:
            end = self._unended.get(after + REQUEST) or self._past.get(after)
            if end is None or viewer not in (None, end.owner):
                raise no_such_batch()
        newest = [headings.before(viewer, end, limit + 1) for headings in (self._unended, self._past)]
        found = sorted({*newest[0], *newest[1]}, reverse=True)
        return await self.states(heading.id for heading in found[:limit]), len(found) > limit

    async def cancel(self, state: BatchState) -> BatchState:
        """Ask for the end of a batch, once; a terminal one stays as it is. Raises StorageFull."""
        if state.record.terminal:
            return state
        await self.blobs.create(f"{state.request.id}{CANCEL}", str(int(self._now())).encode())
        return next(iter(await self.states([state.request.id])), state)

    async def cancelled(self, batch_id: str) -> int | None:
        """Return when a batch was cancelled, in seconds since 1970."""
        said = await self.blobs.fetch([f"{batch_id}{CANCEL}"])
        return next((int(data) for data in said.values() if data), None)

    async def close(self, batch_id: str) -> bool:
        """Let nobody cancel a batch any more; return False if its client was faster. Raises StorageFull."""
        return await self.blobs.create(f"{batch_id}{CANCEL}", b"") or await self.cancelled(batch_id) is None

    async def live(self) -> dict[Heading, Stand]:
        """Return every batch that was not put away, oldest first."""
        names = await self.blobs.names()
        begun = {name.partition("-")[0] for name in names if "-claim-" in name}
        await self._unended.look(name for name in names if name.endswith(REQUEST))
        found = self._unended.since(None, 0)
        there = {heading.id for heading in found}
        self._seen = {name: seen for name, seen in self._seen.items() if name in there}
        ending = {name.removesuffix(CANCEL) for name in names if name.endswith(CANCEL)}
        return {heading: Stand(heading.id in begun, heading.id in ending) for heading in found}

    async def reread(self, batch_id: str) -> BatchState | None:
        """Return a batch as it is now, unless it was put away."""
        return (await self._live([batch_id])).get(batch_id)

    async def is_away(self, batch_id: str) -> bool:
        """Whether a batch was put away."""
        return not await self.blobs.fetch([f"{batch_id}{REQUEST}"])

    async def in_use(self, files: Collection[str]) -> set[str]:
        """Return which of these `files` are inputs of unfinished batches, of any key."""
        states = await self._live([heading.id for heading in await self.live() if heading.input in files])
        return {state.request.input_file_id for state in states.values() if not state.record.terminal}

    async def made(self, owner: str, since: float) -> list[float]:
        """Return when a key made the batches it has made `since` then, in seconds since 1970."""
        await self._look_at_all()
        found = {*self._unended.since(owner, since), *self._past.since(owner, since)}
        return sorted(heading.created for heading in found)

    async def has_open(self, owner: str, count: int) -> bool:
        """Whether at least `count` batches of a key are not terminal."""
        theirs = [heading.id for heading in await self.live() if heading.owner == owner]
        if len(theirs) < count:
            return False
        return sum(not state.record.terminal for state in (await self._live(theirs)).values()) >= count

    async def claim(self, state: BatchState) -> int:
        """Become the next owner of a batch and return its number; 0 if somebody else did. Raises StorageFull."""
        number = state.claims + 1
        made = await self.blobs.create(f"{state.request.id}-claim-{number}", b"")
        return number if made else 0

    async def superseded(self, batch_id: str, owner: int) -> bool:
        """Whether this owner must not write for a batch any more: it has a later one, or has been put away."""
        request, later = f"{batch_id}{REQUEST}", f"{batch_id}-claim-{owner + 1}"
        found = await self.blobs.fetch([later, request])
        return later in found or request not in found

    async def save(self, batch_id: str, record: Record) -> None:
        """Write an owner's record, all of it or nothing. Raises StorageFull."""
        await self.blobs.replace(f"{batch_id}-record-{record.owner}", encode(record))

    async def put_away(self, state: BatchState) -> None:
        """Keep one file of a batch that has ended, instead of several; whoever finds it may do it, also again."""
        batch = state.request.id
        await self._ended.replace(batch, encode(state))
        await self.blobs.delete(f"{batch}{REQUEST}")  # first, so that who finds it last has read what is whole
        for kind in ("claim", "record"):
            for number in range(1, state.claims + 1):
                await self.blobs.delete(f"{batch}-{kind}-{number}")
        await self.blobs.delete(f"{batch}{CANCEL}")

    async def sweep(self, retention: float) -> None:
        """Remove batches that ended over `retention` seconds ago, and what was left of others. Raises StorageFull."""
        for name in await self._ended.names(idle=retention):
            if _ID.fullmatch(name):
                await self._ended.delete(name)
        await sweep_abandoned(self.blobs, _request_of)
        await self._ended.sweep(idle=ABANDONED)

    async def states(self, ids: Iterable[str]) -> list[BatchState]:
        """Return the batches among `ids` that there are, as they are now."""
        wanted = list(ids)
        found = await self._live(wanted)
        away = await self._ended.fetch(name for name in wanted if name not in found)
        found |= readable(decode_state, away)
        return [found[name] for name in wanted if name in found]

    async def _live(self, ids: list[str]) -> dict[str, BatchState]:
        """Return those that were not put away. They are not listed for it: with objects that takes long, and costs."""
        said: dict[str, bytes] = {}
        claims = {name: self._seen.get(name, (0, 0))[0] for name in ids}
        unread = {name: self._seen.get(name, (0, 0))[1] for name in ids}
        growing = ids
        while growing:
            files = [file for name in growing for file in _next_files(name, claims[name], unread[name])]
            found = await self.blobs.fetch(files)
            said |= found
            growing = [name for name in growing if f"{name}-claim-{claims[name] + 1}" in found]
            claims |= {name: claims[name] + 1 for name in growing}
            unread |= {name: claims[name] for name in growing}
        requests = await self.blobs.fetch(f"{name}{REQUEST}" for name in ids)
        states = {}
        for name in ids:
            if (request := requests.get(f"{name}{REQUEST}")) is None:
                continue
            recorded = next((n for n in range(claims[name], 0, -1) if f"{name}-record-{n}" in said), 0)
            self._seen[name] = claims[name], recorded
            record, cancelled = said.get(f"{name}-record-{recorded}"), said.get(f"{name}{CANCEL}")
            try:
                states[name] = _state(request, claims[name], record, cancelled)
            except ValueError as error:  # a broken disk, or somebody's hand: the other batches go on
                log.error("batch unreadable", batch=name, error=str(error))
        return states

    async def _look_at_all(self) -> None:
        """Know the headings of all: first the unended ones, for what ends meanwhile is there before it is removed."""
        await self.live()
        await self._past.look(await self._ended.names())


def no_such_batch() -> NotFound:
    """Return the error for what is not there; in the same words for every reason, or it would tell what others have."""
    return NotFound("there is no such batch; `GET /v1/batches` lists those of your key", param="id")


def _request_of(name: str) -> str | None:
    """Return the file without which one of these names is a rest."""
    match = _KEPT.fullmatch(name)
    return None if match is None else match[1] + REQUEST


def _next_files(name: str, claims: int, unread: int) -> Iterable[str]:
    """Return the files that say what has become of a batch with so many claims, and its records from `unread` on."""
    yield f"{name}-claim-{claims + 1}"
    yield f"{name}{CANCEL}"
    for number in range(max(1, unread), claims + 1):
        yield f"{name}-record-{number}"


def _state(request: bytes, claims: int, record: bytes | None, cancelled: bytes | None) -> BatchState:
    return BatchState(
        request=decode_request(request),
        record=decode_record(record) if record else Record(owner=0),
        claims=claims,
        cancelled=int(cancelled) if cancelled else None,
    )
