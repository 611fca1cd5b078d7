"""Asks processes of their own about callbacks and deployments: here run no user code and no code of the workers."""

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

_CALLBACKS: Final = "workers.prompts.describe"
_DEPLOYMENTS: Final = "workers.deployments"

_TIMEOUT: Final = 60.0


async def describe(settings: Settings, environment: Mapping[str, str]) -> tuple[Mapping[str, Any], ...]:
    """Import the callbacks and return the facts about each. Raises ConfigurationError for one that cannot be used."""
    if not settings.callbacks:
        return ()
    own = surroundings.for_stages(("resolve",), settings, {**environment, **settings.environment})
    with anyio.move_on_after(_TIMEOUT):
        done = await _run(_CALLBACKS, settings, own)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise ConfigurationError(
                said or f"importing the callbacks ended with status {done.returncode} and no word",
                hint="" if said else "look for os._exit or a crash in native code in their files",
            )
        return tuple(_facts(done.stdout))
    raise ConfigurationError(
        f"importing the callbacks took longer than {_TIMEOUT:.0f} s",
        hint="move slow work out of the module, into the prompt manager's method",
    )


async def unusable(settings: Settings, environment: Mapping[str, str]) -> Mapping[str, str]:
    """Return why each deployment that cannot be used is disabled, by its id. Raises ConfigurationError."""
    if not settings.deployments:
        return {}
    own = surroundings.for_stages(("dispatch",), settings, {**environment, **settings.environment})
    done = await _run(_DEPLOYMENTS, settings, own)
    if done.returncode:
        raise ConfigurationError(done.stderr.decode(errors="replace").strip())
    return msgspec.json.decode(done.stdout, type=dict[str, str])


def _facts(printed: bytes) -> list[dict[str, Any]]:
    """Return what the last line says; the others are what the callbacks printed. Raises ConfigurationError."""
    try:
        return msgspec.json.decode(printed[printed.rfind(b"\n", 0, -1) + 1 :], type=list[dict[str, Any]])
    except msgspec.DecodeError:
        raise ConfigurationError(
            "importing the callbacks ended without saying what they are",
            hint="look for os._exit in their files, and for what prints at the end of a process",
        ) from None


async def _run(module: str, settings: Settings, environment: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    # run by name: pipeline imports neither side
    command = [sys.executable, "-P", "-m", module, "--config", settings.source]
    try:
        # In a session of its own: Ctrl-C in the terminal is for the supervisor, and would read here as a failed import.
        return await anyio.run_process(
            command, check=False, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
    except OSError as error:
        raise ConfigurationError(
            f"no process can be started that looks at the configuration ({error.strerror})",
            hint="raise the limits of processes and open files, or free some memory",
        ) from None
