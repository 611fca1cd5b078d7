"""Which deployments cannot be used as things are, as JSON: the supervisor knows no provider."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import click
import msgspec

from pipeline.errors import ConfigurationError
from pipeline.settings import Settings
from pipeline.startup import Source
from workers.providers._calls import Calls

_ANY_PROVIDER = "*"
"""A deployment of this model takes its provider from the client's words, so it can be judged by those alone."""


def unusable(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """Return why each deployment that no request can use is disabled, with the remedy, by its id."""
    calls = Calls(environment)
    reasons = {d.id: calls.disabled(d) for d in settings.deployments if d.model != _ANY_PROVIDER}
    return {name: reason for name, reason in reasons.items() if reason}


@click.command()
@click.option("--config", help="Configuration file; else PROMPTMILL_CONFIG names it.")
def report(config: str | None) -> None:
    """Print the reasons, in the environment of a dispatch worker. Exit status 2 when the file cannot be used."""
    try:
        source = Source(config, None)
        settings = source.read()
    except ConfigurationError as error:
        click.echo(error.message, err=True)
        sys.exit(2)
    source.set_environment(settings)
    click.echo(msgspec.json.encode(unusable(settings, os.environ)))


if __name__ == "__main__":
    report()
