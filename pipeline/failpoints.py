"""Places where a test makes a process fail; without `PROMPTMILL_FAILPOINTS` each is one look at a constant."""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import anyio

VARIABLE: Final = "PROMPTMILL_FAILPOINTS"
"""`name=action,…`, or a directory: a file in it, `name` with the action as its text, fires once in the whole fleet."""

NAMES: Final = frozenset(
    [
        "ingress.before_admit",
        "ingress.after_admit",
        "ingress.mid_stream",
        "resolve.after_read",
        "resolve.before_hook",
        "resolve.mid_hook",
        "resolve.after_resolve",
        "resolve.before_settle",
        "resolve.after_settle_sent",
        "dispatch.after_read",
        "dispatch.before_provider",
        "dispatch.mid_provider",
        "dispatch.after_response",
        "dispatch.before_settle",
        "dispatch.after_settle_sent",
        "feed.validating",
        "feed.mid_feed",
        "feed.before_fsync",
        "feed.after_append",
        "feed.before_rename",
        "feed.before_terminal",
        "feed.after_terminal",
    ]
)

_ACTION: Final = re.compile(r"exit|error|eio|sleep\((\d{1,6})\)")


class FailpointError(Exception):
    """What the action `error` raises: a bug, as far as the code around it knows."""


class Failpoints:
    """What was armed. Raises ValueError for a name or an action that does not exist: such a test tests nothing."""

    def __init__(self, text: str) -> None:
        self._directory = Path(text) if text.startswith("/") else None
        pairs = [] if self._directory else [pair.strip().partition("=")[::2] for pair in text.split(",")]
        self._actions: Mapping[str, str] = dict(pairs)
        for name, action in pairs:
            if name not in NAMES or not _ACTION.fullmatch(action):
                raise ValueError(f"{VARIABLE}: {name}={action}: write name=exit|error|eio|sleep(MS); {sorted(NAMES)}")

    def reach(self, name: str) -> float:
        """Do what `name` is armed with; return the seconds its caller shall sleep. Raises FailpointError, OSError."""
        assert name in NAMES, name
        action = self._actions.get(name) if self._directory is None else _taken(self._directory / name)
        if action == "exit":
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel would: no handler, no flush, no goodbye
        if action == "eio":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if action == "error":
            raise FailpointError(name)
        found = _ACTION.fullmatch(action or "")
        return int(found[1]) / 1000 if found else 0.0


def _taken(file: Path) -> str | None:
    """Return the text of `file` if this process is the one that takes it."""
    try:
        text = file.read_text()
        file.unlink()  # fails for all processes but one
    except FileNotFoundError:
        return None
    return text


# Read at import, the one exception to "configuration is passed explicitly": a failpoint that is not armed must cost
# nothing, so each stands behind `if failpoints.ARMED:`.
ARMED: Final = Failpoints(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


async def reach(name: str) -> None:
    """Fail here, if a test asked for it; `sleep` holds up this job alone."""
    if ARMED is not None and (seconds := ARMED.reach(name)):
        await anyio.sleep(seconds)


def reach_on_thread(name: str) -> None:
    """Fail here, in code that runs on a thread."""
    if ARMED is not None and (seconds := ARMED.reach(name)):
        time.sleep(seconds)
