"""The command `check`: what a configuration means, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import click
import msgspec

from pipeline import callbacks, configuration, options
from pipeline.check import CheckReport, report
from pipeline.errors import ConfigurationError
from pipeline.procfile import choose
from pipeline.settings import Settings
from pipeline.stores.places import prove


@click.command(short_help="Say what a configuration means, and what is wrong with it.")
@options.config()
@options.data_dir()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(config: str | None, data_dir: str | None, as_json: bool) -> int:
    """
    Say what a configuration means, and what is wrong with it, without starting anything.

    The prompt managers are imported, in a process of their own, as a resolve worker would.
    Exit codes: 0 nothing to say, 1 findings, 2 it cannot be used.
    """
    settings = configuration.load(Path(config) if config else None, os.environ, data_dir=data_dir)
    found = report(settings, os.environ, anyio.run(callbacks.unusable, settings, os.environ))
    managers = anyio.run(callbacks.describe, settings, os.environ)
    procfile = choose(None, Path(settings.directory))
    findings = [*_findings(found, procfile.notice), *_storage(settings)]
    if as_json:
        whole = {**msgspec.to_builtins(found), "managers": managers, "procfile": procfile.source, "findings": findings}
        click.echo(msgspec.json.encode(whole))
    else:
        click.echo("\n".join(_lines(found, managers, procfile.source, findings)))
    return 1 if findings else 0


def _findings(found: CheckReport, notice: str) -> list[str]:
    findings = [f"{n.file}:{n.line}: {n.message}" if n.file else n.message for n in found.notices]
    for model in found.models:
        findings += [
            f"{found.source}:{d.line}: {model.name} -> {d.model} is disabled: {d.disabled}"
            for d in model.deployments
            if d.disabled
        ]
    return [*findings, *([notice] if notice else [])]


def _storage(settings: Settings) -> list[str]:
    """Return why files cannot be stored, or why that is not known: the store is asked."""
    try:
        doubt = prove(settings)
    except ConfigurationError as error:
        doubt = f"{error.message}; {error.hint}"
    return [doubt] if doubt else []


def _lines(
    found: CheckReport, managers: tuple[Mapping[str, Any], ...], procfile: str, findings: list[str]
) -> list[str]:
    lines = [f"configuration  {found.source}", f"data           {found.data_dir}", f"processes      {procfile}"]
    if found.storage:
        lines.append(f"storage        {found.storage}")
    for model in found.models:
        targets = [f"{d.model} (line {d.line}{', disabled' if d.disabled else ''})" for d in model.deployments]
        lines.append(f"model          {model.name} -> {', '.join(targets)}")
    lines += [f"alias          {name} -> {target}" for name, target in found.aliases.items()]
    lines += [f"manager        {facts['path']} ({facts['file']}:{facts['line']})" for facts in managers]
    lines += [f"key            {name}" for name in found.keys] or ["key            any (loopback only)"]
    lines += [f"limit          {name} = {value}" for name, value in found.limits.items()]
    return [*lines, *(f"! {finding}" for finding in findings)]
