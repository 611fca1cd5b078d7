"""The `promptmill worker` command: run stages in this process until told to stop."""

from __future__ import annotations

import signal
from typing import Any

import anyio
import click

import workers.stages
from pipeline import logs, options, plugins, startup
from pipeline.errors import ConfigurationError
from pipeline.hangup import KeyReloader
from pipeline.job import BATCH, LANES
from pipeline.rotation import Rotation
from pipeline.runner import Stop, run_stages
from pipeline.settings import Settings
from pipeline.stage import StageSpec
from pipeline.startup import Source

RESTART_STATUS = 75
"""Exit status of a worker that asked for its own restart (EX_TEMPFAIL): a supervisor starts it again."""


@click.command(short_help="Run one or more stages in this process.")
@click.argument("stages", nargs=-1, required=True, metavar="STAGE...")
@click.option(
    "--lane",
    type=click.Choice(LANES),
    help="Serve one lane only: live requests, or batch lines, with what live requests leave of the processors.",
)
@options.config()
@options.data_dir()
@click.option("--debug", "--detailed_debug", "debug", is_flag=True, help="Log every delivery; never bodies or keys.")
def worker(stages: tuple[str, ...], lane: str | None, config: str | None, data_dir: str | None, debug: bool) -> None:
    """
    Run STAGE (resolve, dispatch) as one consumer of its streams. Start more of it to scale.

    Without --lane it serves live requests and batch lines. A process for each keeps live requests quick beside a batch.

    \b
    Exit status: 0 stopped by SIGTERM or SIGINT after draining, 2 wrong usage or configuration,
    75 the worker asked to be restarted (a prompt manager blocks half of its slots).
    """
    logs.configure(debug=debug)
    if lane == BATCH:
        startup.stand_back()
    source = startup.Source(config, data_dir)
    settings = source.load()
    try:
        specs = [load_stage(name) for name in dict.fromkeys(stages)]
        startup.spare_collections()
        ended = anyio.run(
            _serve,
            specs,
            settings,
            source,
            (lane,) if lane else LANES,
            backend="asyncio",
            backend_options={"use_uvloop": True},
        )
    except ConfigurationError as error:
        ended = error
    if isinstance(ended, ConfigurationError):
        startup.refuse(ended)
    if ended:
        raise SystemExit(RESTART_STATUS)


def load_stage(name: str) -> StageSpec:
    """Return the stage of that name. Raises ConfigurationError when there is none."""
    try:
        spec: StageSpec = plugins.load(workers.stages, name, "stage")
    except LookupError as error:
        raise ConfigurationError(f"there is no stage {name!r}", hint=str(error)) from error
    return spec


async def _serve(
    specs: list[StageSpec], settings: Settings, source: Source, lanes: tuple[str, ...]
) -> str | ConfigurationError:
    """Run until told to stop; returns why a restart is wanted, or what is wrong with the configuration."""
    stop, rotation = Stop(), Rotation()
    keys = KeyReloader(source, settings, rotation)
    ended: str | ConfigurationError = ""

    async def heed(signals: Any) -> None:
        async for _ in signals:
            stop()

    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(heed, signals)
            tasks.start_soon(keys.run, stop)
            try:
                ended = await run_stages(specs, settings, startup.redis_url(settings), stop, rotation, lanes)
            except ConfigurationError as error:  # a task group would wrap it
                ended = error
            tasks.cancel_scope.cancel()
    return ended
