"""Options that the `batch` commands share, and the gateway they lead to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from pipeline import options as common
from workers.batch_command.gateway import Gateway
from workers.batch_command.places import KEY_VARIABLE, URL_VARIABLE, Place

_KEY: Final = f"Key of the gateway; better in {KEY_VARIABLE}, where other users cannot see it."
_URL: Final = f"Where the gateway is; {URL_VARIABLE} names it as well. Default: the one that runs here."
_PLACE: Final = (
    common.data_dir,
    common.config,
    partial(click.option, "--key", metavar="KEY", help=_KEY),
    partial(click.option, "--url", metavar="URL", help=_URL),
)

FILE: Final = click.Path(path_type=Path, dir_okay=False)

as_json: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON for other programs.")
endpoint: Final = click.option("--endpoint", metavar="PATH", help="Endpoint of the lines; default: that of the first.")
source: Final = click.argument("source", metavar="INPUT", type=FILE)


def where(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where the gateway is; `place` and `gateway` read them."""

    def note(context: click.Context, option: click.Parameter, value: str | None) -> None:
        context.ensure_object(dict)[option.name] = value

    for option in _PLACE:
        function = option(callback=note, expose_value=False)(function)
    return function


def one_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what the commands about one batch have in common: its id, --json, and where the gateway is."""
    return click.argument("batch_id", metavar="BATCH")(as_json(where(function)))


def place() -> Place:
    """Return what the options of the running command say about the gateway."""
    return Place(**click.get_current_context().ensure_object(dict))


@contextmanager
def gateway() -> Iterator[Gateway]:
    """Talk to the gateway that runs. Raises ConfigurationError and GatewayAway."""
    opened = place().open()
    try:
        yield opened
    finally:
        opened.close()
