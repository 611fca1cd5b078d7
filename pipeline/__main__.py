"""Runs the command line as `python -P -m pipeline`: how `up` starts its processes, tied to itself."""

from __future__ import annotations

import os
import signal

from pipeline.start import main
from pipeline.tether import PARENT_VARIABLE, tie

if __name__ == "__main__":
    if parent := os.environ.pop(PARENT_VARIABLE, ""):
        # SIGKILL, since a drain without supervisor and server would only wait; what was held is claimed by others
        tie(int(parent), signal.SIGKILL)
    main()
