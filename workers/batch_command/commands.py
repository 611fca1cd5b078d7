"""The commands `batch run|submit|watch|status|results|cancel|retry-failed|list`."""

from __future__ import annotations

import hashlib
import signal
import sys
import tempfile
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import msgspec

from pipeline.errors import ConfigurationError
from workers.batch_command import figures, inputs, options, summary
from workers.batch_command.gateway import Batch, Gateway, read_batch
from workers.batch_command.outputs import Targets, collect, custom_ids, damaged, fetch
from workers.batch_command.running import DETACHED, Order, Run, upload
from workers.batch_command.screens import Lines, Objects, open_screen
from workers.batch_command.watching import watch as watch_batch

_RETRY_OF: Final = "promptmill_retry_of"


@click.group(short_help="Run batches: submit, watch, download, retry what failed.")
def batch() -> None:
    """
    Run batches of requests: a file with one request a line goes in, a file with one answer a line comes out.

    \b
    Examples:
      promptmill batch run in.jsonl -o out.jsonl                   submit, watch and download in one
      promptmill batch run in.jsonl -o out.jsonl -c config.yaml    start a gateway for it if none runs
      promptmill batch submit in.jsonl                             print the batch's id
      promptmill batch watch batch_abc

    \b
    Exit codes:
      0    every line was answered
      1    some lines were not, or the results are damaged or cannot be written
      2    wrong usage, configuration, key or input: nothing ran
      3    the gateway cannot be reached
      130  interrupted by Ctrl-C; a batch that was submitted goes on
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a closed terminal ends this command; the batch goes on


@batch.command(short_help="Submit, watch and download in one; once more: go on.")
@options.source
@click.option("--output", "-o", type=options.FILE, required=True, metavar="FILE", help="The answers.")
@options.endpoint
@click.option("--fresh", is_flag=True, help="Run every line, also those that have an answer in the output.")
@options.as_json
@options.where
def run(source: Path, output: Path, endpoint: str | None, fresh: bool, as_json: bool) -> int:
    """
    Run the lines of INPUT and write their answers to the output, those that failed to OUTPUT.errors.jsonl.

    Lines that have an answer in the output do not run again, so the same command goes on after Ctrl-C, and after the
    end runs what failed. Without a gateway on this machine one is started from the configuration, and stopped in the
    end. Ctrl-C leaves the batch running.
    """
    targets = Targets(output)
    endpoint = inputs.endpoint_of(source, endpoint)
    targets.check(source)
    order = Order(
        source=source, targets=targets, place=options.place(), endpoint=endpoint, fresh=fresh, as_json=as_json
    )
    return Run(order).run()


@batch.command(short_help="Upload an input and make a batch of it.")
@options.source
@options.endpoint
@click.option("--metadata", "-m", "pairs", multiple=True, metavar="KEY=VALUE", help="Kept with the batch.")
@options.as_json
@options.where
def submit(source: Path, endpoint: str | None, pairs: tuple[str, ...], as_json: bool) -> int:
    """Make a batch of INPUT and print its id."""
    metadata = dict(_pair(pair) for pair in pairs)
    endpoint = inputs.endpoint_of(source, endpoint)
    with options.gateway() as gateway:
        with open_screen(source.name) as screen:
            file_id = upload(inputs.select(source), gateway, screen)
        _tell_new(gateway, gateway.create(file_id, endpoint, metadata), as_json=as_json)
    return 0


@batch.command(short_help="Show how a batch comes along, until its end.")
@options.one_batch
def watch(batch_id: str, as_json: bool) -> int:
    """
    Show how BATCH comes along, until its end. Ctrl-C changes nothing about it.

    With --json the batch object is printed whenever it has changed, one a line.
    """
    try:
        with options.gateway() as gateway, nullcontext(Objects()) if as_json else open_screen(batch_id[:14]) as screen:
            ended = watch_batch(gateway, batch_id, screen)
    except KeyboardInterrupt:
        click.echo(f"still running: {options.place().command(f'batch watch {batch_id}')}", err=True)
        return DETACHED
    if not as_json:
        click.echo(_outcome(ended))
    return summary.exit_code(ended)


@batch.command(short_help="Show a batch as it is now.")
@options.one_batch
def status(batch_id: str, as_json: bool) -> int:
    """Show BATCH as it is now. Once it has ended the exit code is that of `watch`."""
    with options.gateway() as gateway:
        raw = gateway.batch(batch_id)
    now = read_batch(raw)
    if as_json:
        click.echo(raw)
    elif now.ended:
        click.echo(_outcome(now))
    else:
        click.echo("  ".join([now.id, *figures.headline(now, None)]))
        click.echo(figures.details(now))
        if concern := figures.concern(now, time.time() - now.created_at):
            click.echo(concern)
    return summary.exit_code(now) if now.ended else 0


@batch.command(short_help="Download the answers and errors of a batch.")
@click.option("--output", "-o", type=options.FILE, metavar="FILE", help="Default: standard output.")
@options.one_batch
def results(batch_id: str, output: Path | None, as_json: bool) -> int:
    """
    Download the results of BATCH. With -o, answers the file has stay, and errors go to OUTPUT.errors.jsonl.

    Without -o the answers are printed, and nothing else.
    """
    with options.gateway() as gateway:
        ended = _ended(gateway, batch_id)
        if output is None:
            _print_content(gateway, ended.output_file_id)
            return summary.exit_code(ended)
        targets, known = Targets(output), custom_ids(output)
        again = options.place().command(f"batch retry-failed {batch_id}")
        with open_screen(output.name) as screen:
            causes = collect(gateway, ended, targets, known, screen, f"`{again}`")
    told = summary.written(ended, causes, targets, len(known))
    click.echo(msgspec.json.encode(told) if as_json else "\n".join(summary.lines(told)))
    return summary.exit_code(ended)


@batch.command(short_help="Cancel a batch; lines that are done keep their answers.")
@options.one_batch
def cancel(batch_id: str, as_json: bool) -> int:
    """Cancel BATCH. Lines that are done keep their answers; once more, or after its end, nothing changes."""
    with options.gateway() as gateway:
        raw = gateway.cancel(batch_id)
    click.echo(raw if as_json else f"{batch_id} {read_batch(raw).status}")
    return 0


@batch.command("retry-failed", short_help="Make a new batch of the lines that failed.")
@options.one_batch
def retry_failed(batch_id: str, as_json: bool) -> int:
    """Make a new batch of those lines of BATCH that failed or never ran, and print its id."""
    with options.gateway() as gateway, tempfile.TemporaryDirectory(prefix="promptmill-batch-") as directory:
        ended = _ended(gateway, batch_id)
        if ended.error_file_id is None:
            return _nothing_failed(ended, as_json=as_json)
        errors, lines = Path(directory, "errors.jsonl"), Path(directory, "lines.jsonl")
        screen = Lines(batch_id)
        fetch(gateway, ended.error_file_id, errors, screen)
        fetch(gateway, ended.input_file_id, lines, screen)
        file_id = upload(inputs.select(lines, wanted=custom_ids(errors)), gateway, screen)
        _tell_new(gateway, gateway.create(file_id, ended.endpoint, {_RETRY_OF: batch_id}), as_json=as_json)
    return 0


@batch.command("list", short_help="List batches, newest first.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most so many.")
@options.as_json
@options.where
def list_(limit: int, as_json: bool) -> int:
    """List the batches of the key, newest first."""
    with options.gateway() as gateway:
        for _, raw in zip(range(limit), gateway.batches(), strict=False):
            click.echo(raw if as_json else _row(read_batch(raw)))
    return 0


def _tell_new(gateway: Gateway, made: Batch, *, as_json: bool) -> None:
    click.echo(gateway.batch(made.id) if as_json else made.id)
    click.echo(f"watch it with: {options.place().command(f'batch watch {made.id}')}", err=True)


def _ended(gateway: Gateway, batch_id: str) -> Batch:
    """Return a batch that has ended. Raises ConfigurationError for one that still runs, or could not run at all."""
    found, place = read_batch(gateway.batch(batch_id)), options.place()
    if not found.ended:
        raise ConfigurationError(
            f"{batch_id} still runs, and its results come in the end", hint=place.command(f"batch watch {batch_id}")
        )
    if found.refused:
        raise summary.refused(found, batch_id, place)
    return found


def _nothing_failed(ended: Batch, *, as_json: bool) -> int:
    """Say why no line of a batch can be run again, and return the exit status."""
    ran = ended.has_results
    why = "failed: there is nothing to run again" if ran else "ran: submit its input once more"
    click.echo(f"no line of {ended.id} {why}", err=True)
    if as_json:
        click.echo(msgspec.json.encode({"id": None}))
    return summary.ALL_ANSWERED if ran else summary.SOME_FAILED


def _outcome(ended: Batch) -> str:
    """Return what came of a batch, for people."""
    place = options.place()
    if ended.refused:
        return summary.refused(ended, ended.id, place).message
    said = summary.lines(summary.summary(ended))
    return "\n".join([*said, f"results   {place.command(f'batch results {ended.id} -o out.jsonl')}"])


def _row(batch: Batch) -> str:
    made = datetime.fromtimestamp(batch.created_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    counts = f"{batch.done:,}/{batch.counts.total:,}"
    return f"{batch.id:<40}{batch.status:<13}{counts:>19}{batch.counts.failed:>9,} failed  {made}  {batch.endpoint}"


def _print_content(gateway: Gateway, file_id: str | None) -> None:
    if file_id is not None:
        digest = hashlib.sha256()
        with gateway.content(file_id) as found:
            for piece in found.pieces:
                digest.update(piece)
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        if digest.hexdigest() != found.sha256:
            raise damaged(file_id)


def _pair(text: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not key or not found:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE; put an equals sign between the two")
    return key, value
