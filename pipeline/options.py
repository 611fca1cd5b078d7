"""The options of every command that say where the configuration and the gateway's files are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def config(**more: Any) -> Callable[[Command], Command]:
    """Return the option `--config`; `more` is for click."""
    said = "The configuration; PROMPTMILL_CONFIG names it as well."
    return click.option("--config", "-c", metavar="FILE", help=said, **more)


def data_dir(**more: Any) -> Callable[[Command], Command]:
    """Return the option `--data-dir`; `more` is for click."""
    said = "Where the gateway keeps its files; default: .promptmill beside the configuration."
    return click.option("--data-dir", metavar="DIR", help=said, **more)
