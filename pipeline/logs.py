"""Structured logs: constant event text, facts as key-values, JSON in production and readable on a terminal."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import threading
import traceback
from typing import Any, BinaryIO, Final, TextIO

import msgspec
import structlog

_encode = msgspec.json.Encoder(enc_hook=repr).encode

PACE: Final = 0.05
"""Seconds an INFO line may wait for others: a system call a line costs more than all the rest of it."""

CAUSES: Final = 8
"""Exceptions behind an exception that are shown; a chain may be a circle."""


class _Lines:
    """Where structlog writes rendered lines. Warnings and worse go out at once, and whatever waits before them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._waiting: list[bytes] = []
        self._mutex = threading.Lock()

    def info(self, line: bytes) -> None:
        """Write the line soon; at once where no event loop would come back to it."""
        with self._mutex:
            self._waiting.append(line)
            first = len(self._waiting) == 1
        if first:
            try:
                asyncio.get_running_loop().call_later(PACE, self.flush)
            except RuntimeError:
                self.flush()

    def warning(self, line: bytes) -> None:
        """Write the line and all that waits."""
        with self._mutex:
            self._waiting.append(line)
        self.flush()

    def flush(self) -> None:
        """Write all that waits, in one system call."""
        with self._mutex:
            lines, self._waiting = self._waiting, []
        if lines:
            try:
                self._file.write(b"\n".join(lines) + b"\n")
                self._file.flush()
            except (OSError, ValueError):
                return  # nobody reads our standard error any more; the work goes on

    debug = info
    error = exception = critical = fatal = log = msg = warn = failure = err = warning


def configure(*, debug: bool = False, json: bool | None = None) -> None:
    """
    Set logging up for this process, once, on standard error.

    `json` unset: JSON unless standard error is a terminal, or PROMPTMILL_LOG_FORMAT is `text`. Bodies, prompts and
    keys are never logged, at no level, so `debug` is safe in production.
    """
    if json is None:
        json = not sys.stderr.isatty() and os.environ.get("PROMPTMILL_LOG_FORMAT") != "text"
    level = logging.DEBUG if debug else logging.INFO
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(_traceback) if json else structlog.processors.StackInfoRenderer(),
    ]
    if json:
        renderer: list[Any] = [structlog.processors.JSONRenderer(serializer=_serialize)]
        lines = _Lines(sys.stderr.buffer)
        atexit.register(lines.flush)

        def factory(*_: Any) -> _Lines:
            return lines

    else:
        colors = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        renderer = [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=_print_traceback)]
        factory = structlog.PrintLoggerFactory(file=sys.stderr)  # type: ignore[assignment]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )


def _traceback(exc_info: Any) -> str:
    """
    Return where an exception and its causes were raised, without their messages and without any frame's variables.

    Both may hold a body: `KeyError` and `ValueError` quote what they were given.
    """
    return "".join(["Traceback (most recent call last):\n", *_raised(exc_info[1])])


def _raised(error: BaseException, left: int = CAUSES) -> list[str]:
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    lines = [*_raised(cause, left - 1), "and then:\n"] if cause is not None and left else []
    for part in error.exceptions if isinstance(error, BaseExceptionGroup) and left else ():
        lines += [*_raised(part, left - 1), "in a group:\n"]
    return [*lines, *traceback.format_tb(error.__traceback__), f"{type(error).__module__}.{type(error).__qualname__}\n"]


def _print_traceback(file: TextIO, exc_info: Any) -> None:
    file.write("\n" + _traceback(exc_info))


def _serialize(event: dict[str, Any], **_: Any) -> bytes:
    return _encode(event)


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of a module, named after what it is responsible for."""
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger(source=name)
    return bound
