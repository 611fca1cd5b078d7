"""The command `down`: stop the gateway that runs on a data directory."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final

import click

from pipeline import configuration, lockfile, options, startup

LOOK_EVERY: Final = 0.1
"""Seconds between two looks whether it has ended."""


@click.command(short_help="Stop the gateway that `up` or `batch run` started.")
@options.config()
@options.data_dir()
def down(config: str | None, data_dir: str | None) -> int:
    """
    Stop the gateway that runs on a data directory, and wait until it has finished what is in flight.

    Batches stay: the next gateway on that directory goes on with them.
    Exit codes: 0 it has ended, 1 none runs there, 2 wrong usage or configuration.
    """
    named = config or os.environ.get(configuration.CONFIG_VARIABLE)
    directory = startup.find_data_dir(startup.read_settings(config, data_dir) if named else None, data_dir)
    running = lockfile.running_in(directory)
    if running is None:
        click.echo(f"no gateway runs on the data directory {directory}", err=True)
        return 1
    stop(running.pid, directory)
    click.echo(f"process {running.pid} has ended")
    return 0


def stop(pid: int, directory: Path) -> None:
    """Tell the gateway `pid` to end, and return when it has."""
    with contextlib.suppress(ProcessLookupError):  # it ended by itself
        os.kill(pid, signal.SIGTERM)
    while (running := lockfile.running_in(directory)) is not None and running.pid == pid:
        time.sleep(LOOK_EVERY)
