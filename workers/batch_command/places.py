"""Where the gateway is: named, found by its data directory, or started for the batch."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from pipeline import commands_down, configuration, lockfile, startup
from pipeline.config_access import MASTER_VARIABLES
from pipeline.errors import ConfigurationError, TransportError
from pipeline.settings import Settings
from workers.batch_command.gateway import Gateway, GatewayGone

URL_VARIABLE: Final = "PROMPTMILL_URL"
KEY_VARIABLE: Final = "PROMPTMILL_API_KEY"
ANY_KEY: Final = "any"
"""What a gateway without keys is sent: it takes everything."""

LOG: Final = "up.log"
LOOK_EVERY: Final = 0.05


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What the options and the environment say about the gateway."""

    url: str | None = None
    key: str | None = None
    config: str | None = None
    data_dir: str | None = None

    @property
    def named(self) -> str | None:
        """Its address, if somebody said it."""
        return self.url or os.environ.get(URL_VARIABLE)

    def command(self, words: str) -> str:
        """Return a command as it has to be given for the same gateway; the key is never shown."""
        options = (("--url", self.url), ("-c", self.config), ("--data-dir", self.data_dir))
        return " ".join([f"promptmill {words}", *(f"{name} {shlex.quote(said)}" for name, said in options if said)])

    def settings(self) -> Settings | None:
        """Return the configuration's settings, if there is one. Raises ConfigurationError."""
        if self.config or os.environ.get(configuration.CONFIG_VARIABLE):
            return startup.read_settings(self.config, self.data_dir)
        return None

    def directory(self) -> Path:
        """Return its data directory."""
        return startup.find_data_dir(self.settings(), self.data_dir)

    def open(self, started: int = 0) -> Gateway:
        """
        Return the gateway that runs, and that nobody starts again if it is the process that this command `started`.

        Raises ConfigurationError when nothing says where, and GatewayAway.
        """
        gateway = Gateway(self._finder(started), self._key())
        try:
            gateway.check()
        except BaseException:
            gateway.close()
            raise
        return gateway

    def _finder(self, started: int) -> Callable[[], str]:
        if url := self.named:
            if not url.startswith(("http://", "https://")):
                raise ConfigurationError(f"{url} is no address of a gateway; write http://HOST:PORT")
            return lambda: url
        directory = self.directory()

        def find() -> str:
            running = lockfile.running_in(directory)
            if started and (running is None or running.pid != started):
                log = directory / LOG
                raise GatewayGone(
                    f"the gateway that was started for this, process {started}, has ended; its log is {log}",
                    hint="give the same command again: the batch goes on where it was",
                )
            if running is None:
                raise nobody(directory)
            return _ready(running.pid, directory)

        return find

    def _key(self) -> str:
        """Return the key to send: one that is given, else the master key of the gateway on this machine."""
        if key := self.key or os.environ.get(KEY_VARIABLE):
            return key
        settings = None if self.named else self.settings()
        if settings is not None:
            environment = {**os.environ, **settings.environment}
            values = (value.reveal(environment) for named in settings.keys if named.master for value in named.values)
            if usable := next((value for value in values if value and not value.startswith("sha256:")), None):
                return usable
        return next((key for name in MASTER_VARIABLES if (key := os.environ.get(name))), ANY_KEY)


def nobody(directory: Path) -> ConfigurationError:
    """Return the error for a gateway that is nowhere."""
    return ConfigurationError(
        f"there is no gateway: none is named, and none runs on the data directory {directory}",
        hint=f"give --url or {URL_VARIABLE}, start `promptmill up`, or let `promptmill batch run` start one: "
        "give it the configuration with --config or PROMPTMILL_CONFIG",
    )


def start(settings: Settings) -> int:
    """
    Start `promptmill up` in a session of its own, so that it outlives this command; return its id once it is ready.

    Raises ConfigurationError when it does not start; a Ctrl-C meanwhile ends it.
    """
    directory = Path(settings.data_dir)
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "pipeline", "up", "--config", settings.source, "--port", "0"]
    command += ["--data-dir", settings.data_dir]
    with (directory / LOG).open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)  # noqa: S603 - our own
    try:
        while (running := lockfile.running_in(directory)) is None or not running.url or running.pid != process.pid:
            if process.poll() is not None:
                raise ConfigurationError(f"the gateway does not start:\n{_last_words(directory / LOG)}")
            time.sleep(LOOK_EVERY)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    return process.pid


def stop(pid: int, directory: Path) -> None:
    """Stop a gateway that was started here."""
    running = lockfile.running_in(directory)
    if running is not None and running.pid == pid:
        commands_down.stop(pid, directory)


def _ready(pid: int, directory: Path) -> str:
    """Return the address of a gateway that starts, once it has one."""
    while (running := lockfile.running_in(directory)) is not None:
        if running.url:
            return running.url
        time.sleep(LOOK_EVERY)
    raise TransportError(f"the gateway, process {pid}, ended while it started")


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    told = [line for line in lines if line.startswith(("promptmill: ", "  "))]
    return "\n".join((told or lines)[-8:])
