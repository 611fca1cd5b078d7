"""Facts about the callbacks as JSON, found out in a process of its own: the supervisor never imports user code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import msgspec

from pipeline import configuration, logs, startup
from pipeline.errors import ConfigurationError
from workers.prompts.loading import inspect_callbacks


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="Configuration file; else PROMPTMILL_CONFIG names it.")
def describe(config: Path | None) -> None:
    """Print what each callback of the configuration is. Exit status 2 and a message when one cannot be used."""
    logs.configure()
    try:
        settings = configuration.load(config, os.environ)
        startup.set_environment(settings)
        facts = inspect_callbacks(settings)
    except ConfigurationError as error:
        click.echo("\n".join(filter(None, (error.message, error.hint))), err=True)
        sys.exit(2)
    click.echo(msgspec.json.encode(facts))


if __name__ == "__main__":
    describe()
