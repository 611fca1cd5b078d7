"""Settings on their way from `up` to its processes: all of them run on what was read once, after a crash as well."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO, Final

import msgspec

from pipeline.errors import ConfigurationError
from pipeline.settings import Settings

VARIABLE: Final = "PROMPTMILL_SETTINGS_FD"
"""Number of the open file that holds the settings of a process that `up` started."""


def give(settings: Settings, directory: Path) -> IO[bytes]:
    """Return a nameless file in `directory` that holds `settings`, to be inherited. Raises ConfigurationError."""
    try:
        file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - the supervisor closes it
        file.write(msgspec.msgpack.encode(settings))
        file.flush()
    except OSError as error:
        raise ConfigurationError(
            f"the data directory {directory} cannot be written ({error.strerror})",
            hint="make room there, or name another one with --data-dir or PROMPTMILL_DATA_DIR",
        ) from None
    return file


def take() -> Settings | None:
    """Return the settings this process was given, if it was, and forget where. Raises ConfigurationError."""
    number = os.environ.pop(VARIABLE, "")
    if not number:
        return None
    try:
        with open(int(number), "rb") as file:
            data = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)  # others share its position
        return msgspec.msgpack.decode(data, type=Settings)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{VARIABLE}={number} does not hold settings ({error}); unset it, it is for `promptmill up` alone"
        ) from None
