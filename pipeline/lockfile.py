"""The lock of a data directory: one gateway at a time, and how other commands find the one that runs."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from pipeline.errors import ConfigurationError

NAME: Final = "up.lock"


class Running(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a running gateway says about itself; `redis_url` is the embedded server's, which holds no credentials."""

    pid: int
    redis_url: str = ""
    url: str = ""
    """Where it answers, without a path; empty until it is ready."""


class Lock:
    """A held lock. The kernel lets go of it with the process, so a crash leaves nothing to clean up."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def publish(self, running: Running) -> None:
        """Write down what others may read with `running_in`."""
        data = msgspec.json.encode(running)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, data, 0)


@contextmanager
def hold(data_dir: Path) -> Iterator[Lock]:
    """Make `data_dir` and hold its lock. Raises ConfigurationError when it cannot be written, or somebody holds it."""
    path = data_dir / NAME
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        descriptor = _open(path)
    except OSError as error:
        raise ConfigurationError(
            f"the data directory {data_dir} cannot be used ({error.strerror})",
            hint="name a writable one with --data-dir or PROMPTMILL_DATA_DIR",
        ) from None
    if descriptor is None:
        other = _read(path)
        who = f"process {other.pid}" if other else "another process"
        raise ConfigurationError(
            f"{who} already runs a gateway on the data directory {data_dir}",
            hint="stop it, or give this one a directory of its own with --data-dir or PROMPTMILL_DATA_DIR",
        )
    try:
        lock = Lock(descriptor)
        lock.publish(Running(pid=os.getpid()))
        yield lock
    finally:
        path.unlink(missing_ok=True)  # before the lock goes: whoever gets this file later finds it unlinked
        os.close(descriptor)


def running_in(data_dir: Path) -> Running | None:
    """Return the gateway that runs on `data_dir`, if one does; the file of a killed one does not count."""
    try:
        descriptor = os.open(data_dir / NAME, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read(data_dir / NAME)
    finally:
        os.close(descriptor)
    return None


def _open(path: Path) -> int | None:
    """Return a locked descriptor of the file that `path` names now, or None when somebody holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)  # its holder removed it while we opened it


def _read(path: Path) -> Running | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):  # it goes, or is being written, right now
        return None
