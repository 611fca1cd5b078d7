"""SIGHUP to a process that no `up` replaces, where the configuration cannot even be read."""

from __future__ import annotations

import os
import signal

import anyio
import anyio.lowlevel
import pytest
from fakes.configs import settings
from fakes.waiting import wait_until

from pipeline.hangup import KeyReloader
from pipeline.settings import Settings
from pipeline.startup import Source

pytestmark = pytest.mark.anyio


class Unreadable(Source):
    """A configuration whose disk fails."""

    def __init__(self) -> None:
        super().__init__(None, None)
        self.kept: list[Settings] = []

    def read(self) -> Settings:
        raise OSError("the disk fails")

    def set_environment(self, settings: Settings) -> None:
        self.kept.append(settings)


async def test_a_disk_that_fails_changes_nothing() -> None:
    source, known, taken = Unreadable(), settings(), list[Settings]()
    stopped = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(KeyReloader(source, known, taken.append).run, stopped.set)
        await anyio.lowlevel.checkpoint()  # where it begins to listen
        for count in (1, 2):
            os.kill(os.getpid(), signal.SIGHUP)
            await wait_until(lambda count=count: len(source.kept) == count)
        tasks.cancel_scope.cancel()
    assert (source.kept, taken) == ([known, known], [])
    assert not stopped.is_set()
