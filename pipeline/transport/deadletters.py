"""Dead letters: what no consumer could finish, kept for a human."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from pipeline.job import ErrorFields, Reply, encode
from pipeline.transport import keyspace
from pipeline.transport.connection import Link

PAGE: Final = 100
"""Letters read at a time: with their bodies that is up to 2.5 MB."""

BATCH_PREFIX: Final = "batch_"
"""What clients see before the name of a batch."""

_AGAIN: Final = ErrorFields(status=503, type="server_error", code="run_again", message="")
"""Stands for no error: a provider's refusal, whose code may be anything, has a status below 500."""

_ID: Final = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)
"""What the server makes of an entry's id; it refuses a command with anything else, where we say: not there."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter; `at` is ms on the server's clock. Its body is kept only with `dead_letter_bodies`."""

    id: str
    job_id: str
    stage: str
    reason: str
    deliveries: int
    consumer: str
    at: int
    model: str
    tenant: str
    prompt_id: str
    hint: str
    has_body: bool
    batch: str = ""
    """The batch it is a line of."""


class Which(msgspec.Struct, frozen=True):
    """Dead letters of a stage, or for a reason (`bug` stands for every bug); empty: any."""

    stage: str = ""
    reason: str = ""

    def __contains__(self, letter: DeadLetter) -> bool:
        reasons = ("", letter.reason, letter.reason.partition(":")[0])
        return self.stage in ("", letter.stage) and self.reason in reasons


ALL: Final = Which()


async def list_dead(url: str, limit: int = 100, which: Which = ALL) -> tuple[DeadLetter, ...]:
    """Return up to `limit` dead letters, newest first. Raises TransportUnavailable."""
    found: list[DeadLetter] = []
    async with _link(url) as link:
        async for letter in _letters(link, which):
            found.append(letter)
            if len(found) == limit:
                break
    return tuple(found)


async def read_dead(url: str, entry: str) -> DeadLetter | None:
    """Return one dead letter, or None. Raises TransportUnavailable."""
    found = await _entry(url, entry)
    return _letter(entry, found) if found else None


async def read_dead_body(url: str, entry: str) -> bytes | None:
    """Return the body kept with a dead letter, or None. Raises TransportUnavailable."""
    body: bytes | None = (await _entry(url, entry)).get(b"body")
    return body


async def drop_dead(url: str, ids: Sequence[str] | None, which: Which = ALL) -> int:
    """Remove dead letters, with None all of `which`, and return how many. Raises TransportUnavailable."""
    async with _link(url) as link:
        if ids is None and which == ALL:
            count, _ = await link.call(("XLEN", keyspace.DEAD), ("UNLINK", keyspace.DEAD))
            return int(count)
        if ids is None:
            ids = [letter.id async for letter in _letters(link, which)]
        known = [entry for entry in ids if _ID.fullmatch(entry)]
        return int(await link.run(("XDEL", keyspace.DEAD, *known))) if known else 0


class Replay(msgspec.Struct, frozen=True):
    """What came of a replay, in dead letters. Those that were not replayed stay."""

    replayed: int = 0
    live: int = 0
    """Of live requests: nobody waits for them any more."""
    ended: int = 0
    """Of batches that nobody runs: most have ended."""
    batches: tuple[str, ...] = ()
    """Those batches."""


async def replay_dead(url: str, ids: Sequence[str] | None, which: Which = ALL) -> Replay:
    """
    Have lines of batches that became dead letters run again, with None all of `which`.

    The owner of the batch is told to feed them anew, so no body need have been kept. Raises TransportUnavailable.
    """
    found, live, ended = 0, 0, []
    async with _link(url) as link:
        for letter in [letter async for letter in _letters(link, which) if ids is None or letter.id in ids]:
            if not letter.batch:
                live += 1
            elif await _run_again(link, letter):
                found += 1
            else:
                ended.append(letter.batch)
    return Replay(found, live, len(ended), tuple(dict.fromkeys(ended)))


def runs_again(reply: Reply) -> bool:
    """Whether this is no answer to a line, but the word that it is to run again."""
    return reply.error == _AGAIN


async def _run_again(link: Link, letter: DeadLetter) -> bool:
    """Tell the owner of its batch, where answers come too; False if there is none."""
    word = Reply(id=letter.job_id, error=_AGAIN)
    batch = letter.batch.removeprefix(BATCH_PREFIX)
    if not await link.run(("EXISTS", keyspace.lease(batch))):  # a late answer may have made the stream anew
        return False
    if await link.run(("XADD", keyspace.lines(batch), "NOMKSTREAM", "*", "t", encode(word), "b", b"")) is None:
        return False
    await link.run(("XDEL", keyspace.DEAD, letter.id))
    return True


@asynccontextmanager
async def _link(url: str) -> AsyncIterator[Link]:
    link = Link(url, "promptmill-dead")
    try:
        yield link
    finally:
        await link.close()


async def _letters(link: Link, which: Which) -> AsyncIterator[DeadLetter]:
    """Yield dead letters, newest first."""
    end = "+"
    while page := await link.run(("XREVRANGE", keyspace.DEAD, end, "-", "COUNT", PAGE)):
        for entry, fields in page:
            letter = _letter(entry.decode(), _values(fields))
            if letter in which:
                yield letter
        end = f"({page[-1][0].decode()}"


async def _entry(url: str, entry: str) -> dict[bytes, bytes]:
    if not _ID.fullmatch(entry):
        return {}
    async with _link(url) as link:
        found = await link.run(("XRANGE", keyspace.DEAD, entry, entry))
        return _values(found[0][1]) if found else {}


def _values(fields: list[Any]) -> dict[bytes, bytes]:
    return dict(zip(fields[::2], fields[1::2], strict=True))


def _letter(entry: str, values: dict[bytes, bytes]) -> DeadLetter:
    def text(name: bytes) -> str:
        return values.get(name, b"").decode(errors="replace")

    return DeadLetter(
        id=entry,
        job_id=text(b"job"),
        stage=text(b"stage"),
        reason=text(b"reason"),
        deliveries=int(text(b"deliveries") or 0),
        consumer=text(b"consumer"),
        at=int(text(b"at") or 0),
        model=text(b"model"),
        tenant=text(b"tenant"),
        prompt_id=text(b"prompt"),
        hint=text(b"hint"),
        has_body=b"body" in values,
        batch=f"{BATCH_PREFIX}{text(b'batch')}" if values.get(b"batch") else "",
    )
