"""The terminal a process was started from: SIGHUP means something else once it is closed."""

from __future__ import annotations

import os
from typing import Final

PATH: Final = "/dev/tty"


class Terminal:
    """The terminal this process was started from, if it was."""

    def __init__(self) -> None:
        self._was_there = _opens()

    def closed(self) -> bool:
        """Whether it is gone: then SIGHUP came from the kernel, and nobody sits there who could press Ctrl-C."""
        return self._was_there and not _opens()


def _opens() -> bool:
    try:
        os.close(os.open(PATH, os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
