"""What every command does first: read the configuration, find Redis, and refuse to start in words."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

import click
import msgspec

from pipeline import configuration, handover, lockfile
from pipeline.errors import ConfigurationError, PipelineError
from pipeline.settings import Settings

REFUSED: Final = 2
"""Exit status for wrong usage or configuration."""

UNREACHABLE: Final = 3
"""Exit status when Redis cannot be reached."""

WITHHELD_VARIABLE: Final = "PROMPTMILL_WITHHELD"
"""Variables, separated by commas, that `up` keeps from a process although the configuration sets them."""

REQUEST_TIMEOUT_VARIABLE: Final = "PROMPTMILL_REQUEST_TIMEOUT"
"""`--request_timeout` of `up`, in seconds, on its way to every process."""

YIELD_AFTER: Final = 0.0005
"""Seconds after which a thread that computes gives way to another one that waits; Python's own is 0.005."""

COLLECT_AFTER: Final = 100_000
"""New objects after which the garbage collector looks at those, and stops all else meanwhile; Python's own is 700."""

NICENESS: Final = 10
"""How far processes of batches stand back where processors are short: live requests are served by others."""

AUTOGROUP: Final = Path("/proc/self/autogroup")
AUTOGROUP_TRIES: Final = 10
AUTOGROUP_PAUSE: Final = 0.12
"""Seconds: the kernel takes the next value a tenth of a second after the last."""


class Source:
    """Where the settings of this process come from: read at its start, and again when it is told to."""

    def __init__(self, config: str | None, data_dir: str | None) -> None:
        self._config = config
        self._data_dir = data_dir
        self._environment = dict(os.environ)  # as it was before the configuration set anything in it
        self._set: frozenset[str] = frozenset()
        self.is_replaced = False
        """Whether `up` handed the settings over: it replaces this process where they have changed."""

    def load(self) -> Settings:
        """Return the settings, and set their `environment_variables` in this process. Ends it with status 2 instead."""
        try:
            given = handover.take()
            self.is_replaced = given is not None
            if given is None or self._config:  # a Procfile may name a file of its own
                given = self.read()
        except ConfigurationError as error:
            refuse(error)
        self.set_environment(given)
        return given

    def read(self) -> Settings:
        """Return the settings as the file has them now. Raises ConfigurationError."""
        path = Path(self._config) if self._config else None
        settings = configuration.load(path, self._environment, data_dir=self._data_dir)
        return with_request_timeout(settings, self._environment.get(REQUEST_TIMEOUT_VARIABLE))

    def set_environment(self, settings: Settings) -> None:
        """Set the configuration's variables in this process, but for those that `up` keeps from it."""
        withheld = os.environ.get(WITHHELD_VARIABLE, "").split(",")
        wanted = {name: value for name, value in settings.environment.items() if name not in withheld}
        for name in (gone := self._set - wanted.keys()):
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in self._environment.items() if name in gone} | wanted)
        self._set = frozenset(wanted)


def read_settings(config: str | None, data_dir: str | None) -> Settings:
    """Return the settings. Raises ConfigurationError."""
    return configuration.load(Path(config) if config else None, os.environ, data_dir=data_dir)


def with_request_timeout(settings: Settings, seconds: str | float | None) -> Settings:
    """Return `settings` with another deadline for requests that name none. Raises ConfigurationError."""
    if not seconds:
        return settings
    try:
        timeout = float(seconds)
    except ValueError:
        raise ConfigurationError(f"{REQUEST_TIMEOUT_VARIABLE}={seconds} is not a number of seconds") from None
    longest = max(timeout, settings.ingress.max_request_timeout)
    ingress = msgspec.structs.replace(settings.ingress, request_timeout=timeout, max_request_timeout=longest)
    return msgspec.structs.replace(settings, ingress=ingress)


def configured_url(settings: Settings, environment: Mapping[str, str]) -> str | None:
    """Return the address of the Redis to use: REDIS_URL, else `redis_url`; None: the embedded one."""
    if url := environment.get("REDIS_URL"):
        return url
    secret = settings.transport.url
    if secret is None:
        return None
    url = secret.reveal({**environment, **settings.environment})
    if url is None:
        raise ConfigurationError(f"redis_url names the variable {secret.variable}, which is not set; set it")
    return url


def redis_url(settings: Settings) -> str:
    """Return where Redis is, for a process `up` did not start too. Raises ConfigurationError when nothing says it."""
    if url := configured_url(settings, os.environ):
        return url
    return embedded_url(Path(settings.data_dir))


def embedded_url(data_dir: Path) -> str:
    """Return the address of the embedded server that runs on `data_dir`. Raises ConfigurationError."""
    running = lockfile.running_in(data_dir)
    if running is None or not running.redis_url:
        raise ConfigurationError(
            f"there is no Redis: REDIS_URL is not set, and no gateway runs on the data directory {data_dir}",
            hint="set REDIS_URL (or promptmill_settings.redis_url), or start `promptmill up`, which brings its own",
        )
    return running.redis_url


def find_redis(config: str | None, data_dir: str | None) -> str:
    """Return where the gateway's Redis is, for commands that look at it. Raises ConfigurationError."""
    if url := os.environ.get("REDIS_URL"):
        return url
    if config or os.environ.get(configuration.CONFIG_VARIABLE):
        return redis_url(read_settings(config, data_dir))
    return embedded_url(find_data_dir(None, data_dir))


def find_data_dir(settings: Settings | None, data_dir: str | None) -> Path:
    """Return the data directory of the gateway that a command is about; without settings it is in this directory."""
    if settings is not None:
        return Path(settings.data_dir)
    return Path(data_dir or os.environ.get(configuration.DATA_DIR_VARIABLE) or ".promptmill").absolute()


def refuse(error: PipelineError, status: int = REFUSED) -> NoReturn:
    """End this process: what is wrong and what to do about it on standard error, no traceback."""
    click.echo(f"promptmill: {error.message}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)
    raise SystemExit(status)


def spare_collections() -> None:
    """
    Have the garbage collector look seldom, and never through what is loaded by now: it lives as long as the process.

    Jobs hardly leave a cycle behind, and the collector took a tenth of all CPU in the ingress and in dispatch.
    """
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def stand_back() -> None:
    """
    Let processes that serve live requests have the processors first; batches get what they leave.

    Where Linux shares the processors among sessions, a niceness counts only within one, and the supervisor gives each
    process a session of its own: that session gets it as well (sched(7), "The autogroup feature").
    """
    os.nice(NICENESS)
    if os.getsid(0) != os.getpid():
        return  # begun from a terminal: its session is not ours to slow down
    for _ in range(AUTOGROUP_TRIES):
        try:
            AUTOGROUP.write_text(str(NICENESS))
        except BlockingIOError:
            time.sleep(AUTOGROUP_PAUSE)  # taken from anybody but root ten times a second, on the whole machine
        except OSError:
            return  # no such sharing here: the niceness is enough
        else:
            return


def yield_often() -> None:
    """
    Have threads that compute give way to the event loop soon.

    While a batch is validated on one, the loop waits for it each time it wakes up: 17 ms on a busy machine, now 1.
    """
    sys.setswitchinterval(YIELD_AFTER)
