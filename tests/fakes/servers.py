"""A real server on a unix socket: what `up` embeds, started by a test that may kill it and start it again."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pipeline.settings import TransportSettings
from pipeline.tether import tied
from pipeline.transport import embedded


class Server:
    """A running server. `kill` is SIGKILL, `restart` brings it back on the same socket and data."""

    def __init__(self, files: embedded.EmbeddedServer) -> None:
        self._files = files
        self.restart()

    @property
    def url(self) -> str:
        return self._files.url

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def restart(self) -> None:
        """Start the server, after `kill` or `stop`, and wait until it answers."""
        self._process = subprocess.Popen(tied(list(self._files.command)))
        limit = time.monotonic() + 60  # on a busy machine it takes seconds to read a log of a hundred megabytes
        while not embedded.answers(self._files.socket):
            if self._process.poll() is not None or time.monotonic() > limit:
                raise AssertionError(f"the server did not start: {embedded.last_words(self._files)}")
            time.sleep(0.005)  # blocking on purpose: fixtures of any scope use this, with no event loop


@contextmanager
def start_server(directory: Path, settings: TransportSettings | None = None) -> Iterator[Server]:
    """
    Run a server of its own in `directory`; nothing is left of it afterwards.

    `maxmemory` is 1 GB unless `settings` say otherwise. Between tests on one server: FLUSHALL.
    """
    settings = settings or TransportSettings(maxmemory=2**30)
    settings = settings if settings.maxmemory else msgspec.structs.replace(settings, maxmemory=2**30)
    files = embedded.prepare(directory, embedded.find_binary({}), settings)
    server = Server(files)
    try:
        yield server
    finally:
        server.kill()
        embedded.remove_socket(files)
