"""Asks a process of its own what the callbacks are: user code never runs in the supervisor or the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

import anyio
import msgspec

from pipeline import surroundings
from pipeline.errors import ConfigurationError
from pipeline.settings import Settings

# run by name: pipeline imports neither side
_COMMAND: Final = ("-P", "-m", "workers.prompts.describe", "--config")

_TIMEOUT: Final = 60.0


async def describe(settings: Settings, environment: Mapping[str, str]) -> tuple[Mapping[str, Any], ...]:
    """Import the callbacks and return the facts about each. Raises ConfigurationError for one that cannot be used."""
    if not settings.callbacks:
        return ()
    own = surroundings.for_stages(("resolve",), settings, {**environment, **settings.environment})
    command = [sys.executable, *_COMMAND, settings.source]
    with anyio.move_on_after(_TIMEOUT):
        done = await anyio.run_process(command, check=False, env=own, stdin=subprocess.DEVNULL)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise ConfigurationError(said or f"importing the callbacks ended with status {done.returncode}")
        return tuple(msgspec.json.decode(done.stdout.splitlines()[-1], type=list[dict[str, Any]]))
    raise ConfigurationError(
        f"importing the callbacks took longer than {_TIMEOUT:.0f} s",
        hint="move slow work out of the module, into the prompt manager's method",
    )
