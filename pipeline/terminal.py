"""The terminal a process was started from: SIGHUP means something else once it is closed."""

from __future__ import annotations

import errno
import os
from typing import Final

PATH: Final = "/dev/tty"
STDOUT: Final = 1
STDERR: Final = 2


class Terminal:
    """The terminal this process was started from, if it was."""

    def __init__(self) -> None:
        self._was_there = _opens()

    def closed(self) -> bool:
        """
        Whether it is gone: then SIGHUP came from the kernel, and nobody sits there who could press Ctrl-C.

        What the process still writes goes nowhere then: at its end Python would take a failed write for its failure.
        """
        if not self._was_there or _opens():
            return False
        for number in (STDOUT, STDERR):
            if not _can_be_written(number):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)
        return True


def _can_be_written(number: int) -> bool:
    """Whether a descriptor is no terminal, or one that is there; a closed one answers that it is none, with EIO."""
    try:
        os.get_terminal_size(number)
    except OSError as error:
        return error.errno != errno.EIO
    return True


def _opens() -> bool:
    try:
        os.close(os.open(PATH, os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
