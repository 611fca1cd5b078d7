"""Dead letters: what no consumer could finish, kept for a human."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from pipeline.transport import keyspace
from pipeline.transport.connection import Link

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


async def list_dead(url: str, limit: int = 100) -> tuple[DeadLetter, ...]:
    """Return up to `limit` dead letters, newest first. Raises TransportUnavailable."""
    return await _read(url, ("XREVRANGE", keyspace.DEAD, "+", "-", "COUNT", limit))


async def read_dead(url: str, entry: str) -> DeadLetter | None:
    """Return one dead letter, or None. Raises TransportUnavailable."""
    found = await _read(url, ("XRANGE", keyspace.DEAD, entry, entry)) if _ID.fullmatch(entry) else ()
    return found[0] if found else None


async def drop_dead(url: str, ids: Sequence[str] | None) -> int:
    """Remove dead letters, all with None, and return how many. Raises TransportUnavailable."""
    link = Link(url, "promptmill-dead")
    try:
        if ids is None:
            count, _ = await link.call(("XLEN", keyspace.DEAD), ("UNLINK", keyspace.DEAD))
            return int(count)
        known = [entry for entry in ids if _ID.fullmatch(entry)]
        return int(await link.run(("XDEL", keyspace.DEAD, *known))) if known else 0
    finally:
        await link.close()


async def _read(url: str, command: tuple[str | int, ...]) -> tuple[DeadLetter, ...]:
    link = Link(url, "promptmill-dead")
    try:
        return tuple(_letter(entry.decode(), fields) for entry, fields in await link.run(command))
    finally:
        await link.close()


def _letter(entry: str, fields: list[Any]) -> DeadLetter:
    values = dict(zip(fields[::2], fields[1::2], strict=True))

    def text(name: bytes) -> str:
        return str(values.get(name, b"").decode(errors="replace"))

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
    )
