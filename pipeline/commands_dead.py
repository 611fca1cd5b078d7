"""The commands `dead list|show|replay|drop`: jobs that no consumer could finish."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import click
import msgspec

from pipeline import options, startup
from pipeline.transport.deadletters import (
    DeadLetter,
    Which,
    drop_dead,
    list_dead,
    read_dead,
    read_dead_body,
    replay_dead,
)
from pipeline.transport.keyspace import DEAD_BODY_LIMIT


def _where(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where the gateway is: they may stand before the sub-command or after it."""

    def note(context: click.Context, option: click.Parameter, value: str | None) -> None:
        places = context.ensure_object(dict)
        if value is not None:
            places[option.name] = value

    for option in (options.config, options.data_dir):
        function = option(callback=note, expose_value=False)(function)
    return function


def _which(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose among dead letters."""
    stage = click.option("--stage", metavar="NAME", default="", help="Only those of this stage.")
    return stage(
        click.option("--reason", metavar="WORD", default="", help="Only those: poison, bug, unreadable.")(function)
    )


def _several(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what the commands for several dead letters have in common: which, all of them, --json."""
    everything = click.option(
        "--all", "everything", is_flag=True, help="All of them, or all that --stage and --reason choose."
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    ids = click.argument("ids", nargs=-1)
    return ids(_where(_which(everything(as_json(click.pass_context(function))))))


def _redis(context: click.Context) -> str:
    places: dict[str, str] = context.ensure_object(dict)
    return startup.find_redis(places.get("config"), places.get("data_dir"))


@click.group(short_help="List, show, replay or drop dead letters.")
@_where
def dead() -> None:
    """
    List, show, replay or drop dead letters: jobs that no consumer could finish.

    Exit codes: 0 ok, 1 there is no such dead letter, or it cannot be replayed, 2 wrong usage or configuration,
    3 Redis cannot be reached.
    """


@dead.command("list", short_help="List them, newest first.")
@_where
@_which
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_context
def list_(context: click.Context, stage: str, reason: str, limit: int, as_json: bool) -> int:
    """List dead letters, newest first."""
    letters = anyio.run(list_dead, _redis(context), limit, Which(stage, reason))
    for letter in letters:
        click.echo(msgspec.json.encode(letter) if as_json else _line(letter))
    if not letters:
        click.echo("no dead letters", err=True)
    return 0


@dead.command(short_help="Show one.")
@click.argument("id")
@_where
@click.option("--body", is_flag=True, help="Print its body and nothing else; dead_letter_bodies keeps small ones.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def show(context: click.Context, id: str, body: bool, as_json: bool) -> int:  # noqa: A002 - the name users read
    """Show the dead letter ID."""
    if body:
        return _show_body(_redis(context), id)
    letter = anyio.run(read_dead, _redis(context), id)
    if letter is None:
        click.echo(f"there is no dead letter {id}; `promptmill dead list` shows what there is", err=True)
        return 1
    if as_json:
        click.echo(msgspec.json.encode(letter))
    else:
        facts = {**msgspec.structs.asdict(letter), "at": _time(letter)}
        click.echo("\n".join(f"{name:<12}{value}" for name, value in facts.items()))
    return 0


def _show_body(url: str, entry: str) -> int:
    body = anyio.run(read_dead_body, url, entry)
    if body is None:
        kept = f"with `dead_letter_bodies: true`, those of up to {DEAD_BODY_LIMIT:,} bytes are"
        click.echo(f"no body is kept of {entry}; {kept}", err=True)
        return 1
    click.echo(body, nl=False)
    return 0


@dead.command(short_help="Run lines of batches again.")
@_several
def replay(
    context: click.Context, ids: tuple[str, ...], stage: str, reason: str, everything: bool, as_json: bool
) -> int:
    """
    Run lines of batches again that became the dead letters IDS, once their cause is mended.

    While a batch runs, such a line keeps its place in it: it is read from the batch's input, goes through its prompt
    manager anew, and its answer is among the results. Once all other lines are done it has failed, and
    `promptmill batch retry-failed` runs it. Live requests are not replayed: their clients have got an error.
    """
    chosen = _choice(ids, stage, reason, everything=everything)
    done = anyio.run(replay_dead, _redis(context), *chosen)
    missing = 0 if everything else len(set(ids)) - done.replayed - done.live - done.ended
    click.echo(msgspec.json.encode(done) if as_json else f"{done.replayed} replayed")
    for count, why in (
        (missing, "not there; `promptmill dead list` shows what there is"),
        (done.live, "of live requests: nobody waits for them; `promptmill dead show ID --body` has what to send again"),
        (
            done.ended,
            "of batches that do not run; of those that have ended, `promptmill batch retry-failed BATCH` does it",
        ),
    ):
        if count:
            click.echo(f"{count} {why}", err=True)
    return 1 if missing or done.live or done.ended else 0


@dead.command(short_help="Remove some, or all.")
@_several
def drop(context: click.Context, ids: tuple[str, ...], stage: str, reason: str, everything: bool, as_json: bool) -> int:
    """Remove the dead letters IDS. Their jobs are not run again."""
    chosen = _choice(ids, stage, reason, everything=everything)
    dropped = anyio.run(drop_dead, _redis(context), *chosen)
    click.echo(msgspec.json.encode({"dropped": dropped}) if as_json else f"{dropped} removed")
    return 0 if everything or dropped == len(ids) else 1


def _choice(ids: tuple[str, ...], stage: str, reason: str, *, everything: bool) -> tuple[tuple[str, ...] | None, Which]:
    """Return which dead letters are meant: these ids, or all that fit. Raises UsageError."""
    if bool(ids) == everything or (ids and (stage or reason)):
        raise click.UsageError("name the dead letters, or give --all, with --stage and --reason if need be")
    return None if everything else ids, Which(stage, reason)


def _line(letter: DeadLetter) -> str:
    return f"{letter.id:<22}{_time(letter):<22}{letter.stage:<10}{letter.model:<24}{letter.reason}"


def _time(letter: DeadLetter) -> str:
    return datetime.fromtimestamp(letter.at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
