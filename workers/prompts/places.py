"""Where user code stands: in an error's traceback, in a thread, in a task that waits."""

from __future__ import annotations

import os
from asyncio import Task
from collections.abc import Iterable
from types import CoroutineType, FrameType, TracebackType
from typing import Any

Stack = tuple[tuple[str, int], ...]
"""File and line of each level, innermost first. Not the frames: they would keep prompts alive."""


def of_frame(frame: FrameType | None) -> Stack:
    """Return the stack that ends in `frame`."""
    found = []
    while frame is not None:
        found.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


def of_task(task: Task[Any]) -> Stack:
    """Return where a suspended task waits, through every coroutine it awaits."""
    found = []
    waiting: Any = task.get_coro()
    while isinstance(waiting, CoroutineType):
        if waiting.cr_frame is not None:
            found.append((waiting.cr_frame.f_code.co_filename, waiting.cr_frame.f_lineno))
        waiting = waiting.cr_await
    return tuple(reversed(found))


def of_error(error: BaseException) -> Stack:
    """Return where `error` was raised; for a syntax error, where it is."""
    found = []
    step: TracebackType | None = error.__traceback__
    while step is not None:
        found.append((step.tb_frame.f_code.co_filename, step.tb_lineno))
        step = step.tb_next
    if isinstance(error, SyntaxError) and error.filename:
        found.append((error.filename, error.lineno or 0))
    return tuple(reversed(found))


def in_directory(stack: Iterable[tuple[str, int]], directory: str) -> str:
    """Return the innermost place of `stack` in the user's own files as `file.py:12`; empty when there is none."""
    prefix = os.path.join(directory, "")
    for file, line in stack:
        if file.startswith(prefix) and "site-packages" not in (rest := file[len(prefix) :]):
            return f"{rest}:{line}"
    return ""
