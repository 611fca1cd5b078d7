"""Structured logs: constant event text, facts as key-values, JSON in production and readable on a terminal."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import msgspec
import structlog

_encode = msgspec.json.Encoder(enc_hook=repr).encode


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
        structlog.processors.ExceptionRenderer() if json else structlog.processors.StackInfoRenderer(),
    ]
    if json:
        renderer: list[Any] = [structlog.processors.JSONRenderer(serializer=_serialize)]
        factory: Any = structlog.BytesLoggerFactory(file=sys.stderr.buffer)
    else:
        colors = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        # Not the default formatter: with rich installed it prints every frame's locals, bodies and keys among them.
        plain = structlog.dev.plain_traceback
        renderer = [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
        factory = structlog.PrintLoggerFactory(file=sys.stderr)
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )


def _serialize(event: dict[str, Any], **_: Any) -> bytes:
    return _encode(event)


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of a module, named after what it is responsible for."""
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger(source=name)
    return bound
