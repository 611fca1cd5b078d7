"""The first lines of every process: signals that come while the command line is still being loaded."""

from __future__ import annotations

import pkgutil
import signal


def main() -> None:
    """Load the command line, and run it; until then Ctrl-C ends the process without a traceback."""
    ctrl_c = signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What serves reads its configuration soon enough. A function: what is ignored stays so in programs that we start.
    signal.signal(signal.SIGHUP, lambda *_: None)
    run = pkgutil.resolve_name("pipeline.cli:main")
    signal.signal(signal.SIGINT, ctrl_c)
    run()
