"""Facts about the callbacks as JSON, found out in a process of its own: the supervisor never imports user code."""

from __future__ import annotations

import sys

import click
import msgspec

from pipeline import logs
from pipeline.errors import ConfigurationError
from pipeline.startup import Source
from workers.prompts.loading import inspect_callbacks


@click.command()
@click.option("--config", help="Configuration file; else PROMPTMILL_CONFIG names it.")
def describe(config: str | None) -> None:
    """Print what each callback of the configuration is. Exit status 2 and a message when one cannot be used."""
    logs.configure()
    try:
        source = Source(config, None)
        settings = source.read()
        source.set_environment(settings)
        facts = inspect_callbacks(settings)
    except ConfigurationError as error:
        click.echo("\n".join(filter(None, (error.message, error.hint))), err=True)
        sys.exit(2)
    click.echo(b"\n" + msgspec.json.encode(facts))  # on a line of its own, whatever a module printed


if __name__ == "__main__":
    describe()
