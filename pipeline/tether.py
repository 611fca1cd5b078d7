"""Ties a process to the one that started it: when a supervisor is killed, nothing it started outlives it."""

from __future__ import annotations

import os
import signal
import sys

PARENT_VARIABLE = "PROMPTMILL_PARENT"
"""Process id of the `up` that started a process of the gateway."""

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>; kept over execve, cleared in forked children


def tie(parent: int, number: int) -> None:
    """Have the kernel send signal `number` to this process when `parent` ends; leave at once if it already has."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - takes long, and until a start is over Ctrl-C shows a traceback

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was told
        raise SystemExit(1)


def tied(command: list[str], number: int = signal.SIGTERM) -> list[str]:
    """Return the command line that runs `command` tied to this process."""
    # -I -S: the interpreter is only there for the system call, so it starts without site-packages (about 20 ms)
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(number)), *command]


if __name__ == "__main__":
    tie(int(sys.argv[1]), int(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])  # noqa: S606 - the command line was built by `tied`, from our own words
