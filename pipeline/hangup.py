"""What SIGHUP means to a process of the gateway: take over the keys of the configuration, as the file has them now."""

from __future__ import annotations

import signal
from collections.abc import Callable

import anyio
import anyio.to_thread

from pipeline import logs, rotation
from pipeline.errors import ConfigurationError
from pipeline.settings import Settings
from pipeline.startup import Source
from pipeline.terminal import Terminal

log = logs.logger("configuration")


class KeyReloader:
    """Takes over the keys of the configuration file, in place, in a process that no `up` replaces."""

    def __init__(self, source: Source, settings: Settings, take_over: Callable[[Settings], None]) -> None:
        self._source = source
        self._settings = settings
        self._take_over = take_over

    async def run(self, stop: Callable[[], object]) -> None:
        """Reload on every SIGHUP; `stop` when it says that the terminal was closed."""
        terminal = Terminal()
        with anyio.open_signal_receiver(signal.SIGHUP) as signals:
            async for _ in signals:
                if terminal.closed():
                    stop()
                else:
                    await self._reload()

    async def _reload(self) -> None:
        """Take over what can be; a file that cannot be used changes nothing."""
        try:
            new = await anyio.to_thread.run_sync(self._source.read)
            rotated = rotation.rotated(self._settings, new)
            self._source.set_environment(rotated)
            self._take_over(rotated)
        except (ConfigurationError, OSError) as error:
            self._source.set_environment(self._settings)
            log.error("configuration not reloaded", error=str(error), hint=getattr(error, "hint", ""))
            return
        self._settings = rotated
        differences = [] if self._source.is_replaced else rotation.differences(rotated, new)
        log.info("keys reloaded", needs_restart=differences)
