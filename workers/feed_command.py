"""The `promptmill feed` command: own batches, feed their lines and collect the answers, until told to stop."""

from __future__ import annotations

import signal
from typing import Any

import anyio
import click

from pipeline import logs, options, startup
from pipeline.catalog import Catalog
from pipeline.errors import ConfigurationError
from pipeline.settings import Settings
from pipeline.stores.batches import BatchStore
from pipeline.stores.files import FileStore
from pipeline.stores.places import open_places, prove
from pipeline.transport.feeding import FeedTransport
from workers.batches.keeper import Keeper
from workers.batches.run import Desk

log = logs.logger("feed")


@click.command(short_help="Own batches: feed their lines, collect the answers.")
@options.config()
@options.data_dir()
@click.option("--debug", "--detailed_debug", "debug", is_flag=True, help="Log more; never bodies or keys.")
def feed(config: str | None, data_dir: str | None, debug: bool) -> None:
    """
    Feed the lines of batches to the pipeline and collect their answers. Start more of it to scale.

    A batch belongs to one process at a time; one that stops or dies leaves its batches to the others.
    """
    logs.configure(debug=debug)
    settings = startup.Source(config, data_dir).load()
    startup.spare_collections()
    startup.yield_often()
    startup.stand_back()
    try:
        if doubt := prove(settings):
            log.warning("batches may have to wait", reason=doubt)
        anyio.run(
            _serve, settings, startup.redis_url(settings), backend="asyncio", backend_options={"use_uvloop": True}
        )
    except ConfigurationError as error:
        startup.refuse(error)


async def _serve(settings: Settings, url: str) -> None:
    transport = FeedTransport(settings, url)
    places = open_places(settings)
    desk = Desk(
        settings=settings,
        catalog=Catalog(settings),
        store=BatchStore(places.batches, transport.time),
        files=FileStore(places.files, settings.files, transport.time),
        transport=transport,
    )
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with transport.running(), anyio.create_task_group() as tasks:
            tasks.start_soon(_heed, signals, tasks.cancel_scope)
            await Keeper(desk).run()


async def _heed(signals: Any, work: anyio.CancelScope) -> None:
    async for _ in signals:
        work.cancel()
        return
