"""One connection to Redis: commands go out in pipelined groups, and every foreign exception becomes one of ours."""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
from collections.abc import Sequence
from importlib import resources
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import hiredis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.retry import Retry

from pipeline import metrics
from pipeline.errors import ConfigurationError, TransportFull, TransportUnavailable

Command = tuple[str | bytes | int | float, ...]

ANSWER_TIMEOUT: Final = 5.0
"""Seconds without an answer before a connection is given up: detects a black hole well within 15 s."""

# redis-py has classes for some of the replies that mean "not now" and takes the code off their text; of the others
# the text begins with the code. "BUSY " with its blank: BUSYGROUP only says that a group is there.
_DEMOTED: Final = (ReadOnlyError, MasterDownError)
_NOT_NOW: Final = (*_DEMOTED, TryAgainError, ClusterDownError)
_NOT_NOW_CODES: Final = ("UNBLOCKED ", "BUSY ", "MISCONF ", "NOREPLICAS ")


class Script:
    """A Lua file of `scripts/`, sent by its hash."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = resources.files("pipeline.transport").joinpath("scripts", f"{name}.lua").read_text()
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, keys: Sequence[str], *args: str | bytes | int | float) -> Command:
        """Return the command that runs the script."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)


ADMIT: Final = Script("admit")
WRITE: Final = Script("write")
CLAIM: Final = Script("claim")
RENEW: Final = Script("renew")
RELEASE: Final = Script("release")
MOVE: Final = Script("move")
LISTEN: Final = Script("listen")
RETIRE: Final = Script("retire")
REGISTER: Final = Script("register")
CANCEL: Final = Script("cancel")
STORE: Final = Script("store")
PREPARE: Final = Script("prepare")
FIND: Final = Script("find")
LEASE: Final = Script("lease")
_SCRIPTS: Final = {
    script.sha: script
    for script in (
        ADMIT, WRITE, CLAIM, RENEW, RELEASE, MOVE, LISTEN, RETIRE, REGISTER, CANCEL, STORE, PREPARE, FIND, LEASE
    )
}  # fmt: skip


class Link:
    """
    One connection and one conversation at a time on it, opened on first use and again after a loss.

    redis-py's own retries are off: they repeat what may already have happened. The caller knows what is idempotent.
    """

    def __init__(self, url: str, name: str, patience: float = math.inf) -> None:
        self._url = url
        self._name = name
        self._patience = patience
        """Seconds without an answer after which it is given up; at most `ANSWER_TIMEOUT`."""
        self._sent = metrics.REDIS_COMMANDS[name.rpartition("-")[2],]
        self._connection: AbstractConnection | None = None
        self._turn = anyio.Lock(fast_acquire=True)

    async def call(self, *commands: Command, wait: float = 0.0) -> list[Any]:
        """
        Send `commands` together and return their replies in order; a command's own error stands in its place.

        `wait` is how long the server may block, in seconds. Raises TransportUnavailable when the connection is lost
        or the server says that it cannot serve yet; whether the commands ran is then unknown.
        """
        async with self._turn:
            try:
                replies = await self._converse(commands, wait)
            except (RedisError, OSError, TimeoutError, EOFError) as error:
                self._drop()
                metrics.REDIS_ERRORS[type(error).__name__,].inc()
                fact, remedy = _trouble(error)
                raise TransportUnavailable(
                    f"Redis at {describe(self._url)} {fact}", hint=remedy, retry_after=1.0
                ) from error
            except BaseException:  # cancelled in the middle: the next reply would answer another question
                self._drop()
                raise
            for reply in replies:
                if isinstance(reply, ResponseError):
                    self._raise_if_server_is_away(reply)
        return replies

    async def run(self, command: Command) -> Any:
        """Send one command and return its reply. Raises TransportFull or TransportUnavailable for an error reply."""
        (reply,) = await self.call(command)
        if isinstance(reply, OutOfMemoryError):
            raise server_full() from reply
        if isinstance(reply, ResponseError):
            raise TransportUnavailable(f"Redis refused {command[0]!s}: {reply}", retry_after=1.0) from reply
        return reply

    async def _converse(self, commands: Sequence[Command], wait: float) -> list[Any]:
        # One timer for the whole conversation: redis-py would start one per reply, and a task per send.
        async with asyncio.timeout(min(self._patience, ANSWER_TIMEOUT) + wait):
            if self._connection is not None and _is_closed(self._connection):  # while nobody used it: nothing is lost
                self._drop()
            if self._connection is None:
                self._connection = await _connect(self._url, self._name)
            self._sent.inc(len(commands))
            replies = await _exchange(self._connection, commands)
            missing = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if missing:  # SCRIPT FLUSH or a new server; none of these ran
                again = [commands[i] for i in missing]
                loads = dict.fromkeys(_SCRIPTS[str(command[1])] for command in again)
                await _exchange(self._connection, [("SCRIPT", "LOAD", script.text) for script in loads])
                for i, reply in zip(missing, await _exchange(self._connection, again), strict=True):
                    replies[i] = reply
            return replies

    def _raise_if_server_is_away(self, error: ResponseError) -> None:
        """Raise for replies that mean "not now": a script holds the server up, its disk is full, it is a replica."""
        if isinstance(error, _DEMOTED):  # it keeps our connection; who has its place is who answers the next one
            self._drop()
        if isinstance(error, _NOT_NOW) or str(error).startswith(_NOT_NOW_CODES):
            raise TransportUnavailable(f"Redis cannot serve yet: {error}", retry_after=1.0) from error

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            _abort(connection)

    async def close(self) -> None:
        """Close the connection; the link opens again when it is used again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)


async def _connect(url: str, name: str) -> AbstractConnection:
    try:
        pool = ConnectionPool.from_url(
            url,
            protocol=2,  # reply shapes differ between protocols, and redis-py's default has changed before
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=ANSWER_TIMEOUT,
            client_name=name,
        )
    except ValueError:  # its words may hold a part of the password
        hint = "Give redis://, rediss:// or unix://; write special characters of a password as %40 and the like."
        raise ConfigurationError("REDIS_URL cannot be used: it is no URL of a server", hint=hint) from None
    connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py has no annotation here
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException:
        _abort(connection)
        raise
    return connection


async def _exchange(connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
    if _is_closed(connection):  # uvloop would raise a RuntimeError for the write
        raise ConnectionResetError("the server closed the connection")
    await connection.send_packed_command(
        b"".join(hiredis.pack_command(command) for command in commands),  # type: ignore[arg-type]  # its stub knows pairs only
        check_health=False,
    )
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(await connection.read_response(disable_decoding=True, timeout=math.inf))
        except ResponseError as error:
            replies.append(error)
    return replies


def _is_closed(connection: AbstractConnection) -> bool:
    writer = connection._writer
    return writer is not None and writer.is_closing()


def _abort(connection: AbstractConnection) -> None:
    """Close at once, without the coroutine that a cancelled task could not await."""
    writer = connection._writer
    connection._writer = connection._reader = None
    if writer is not None:
        writer.transport.abort()


def _trouble(error: BaseException) -> tuple[str, str]:
    """Return what keeps us from Redis, in words that hold nothing of its URL, and what to do about it."""
    if isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError):
        return "does not accept our password", "Give the right one in REDIS_URL."
    if "max number of clients" in str(error):
        return "has no connection left (maxclients)", "Raise its `maxclients`."
    return f"cannot be reached ({type(error).__name__})", "Requests are served again as soon as it is back."


def server_full() -> TransportFull:
    """Return the error for what a server at its memory limit did not take."""
    return TransportFull(
        "Redis is at its memory limit and takes no new jobs",
        hint="Nothing ran; try again when the workers have caught up, or raise `maxmemory`.",
        retry_after=2.0,
    )


def describe(url: str) -> str:
    """Return where a Redis URL points, without its credentials."""
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


class Backoff:
    """Pauses between attempts to reach Redis: full jitter, so that a fleet does not come back in step."""

    def __init__(self, least: float = 0.05, most: float = 2.0) -> None:
        self._least, self._most, self._failures = least, most, 0

    async def pause(self) -> None:
        """Wait a little longer than last time."""
        self._failures += 1
        ceiling = min(self._most, self._least * 2**self._failures)
        await anyio.sleep(random.uniform(self._least, ceiling))  # noqa: S311 - spreads load, guards nothing

    def reset(self) -> None:
        """Forget the failures: it worked."""
        self._failures = 0
