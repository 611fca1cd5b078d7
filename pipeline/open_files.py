"""How many connections a process may have: its limit of open files, raised as far as it goes."""

from __future__ import annotations

import resource
import sys
from typing import Final

KEPT: Final = 64
"""Open files a process needs for other things than the connections it is there for."""


def connections_left() -> int:
    """Return how many connections the limit of open files leaves room for, once it is as high as it may be."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        files = most
    except (ValueError, OSError):
        pass  # some systems call a limit infinite that they do not let anyone have
    return sys.maxsize if files == resource.RLIM_INFINITY else max(1, files - KEPT)
