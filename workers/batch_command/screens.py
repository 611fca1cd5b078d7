"""What is shown while a batch runs: a live bar on a terminal, lines elsewhere, JSON for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from workers.batch_command import figures
from workers.batch_command.gateway import read_batch

LINE_EVERY: Final = 5.0
"""Seconds between two plain lines at least."""

NAME_MOST: Final = 28


class Screen(Protocol):
    """Where progress is shown. `look_every` is how often it wants news, in seconds."""

    look_every: float

    def transfer(self, doing: str, done: int, total: int) -> None:
        """Show how far an upload or a download is, in bytes."""

    def show(self, seen: bytes) -> None:
        """Show a batch object, as it came."""

    def say(self, text: str) -> None:
        """Show a sentence that stays."""


class Bar:
    """A bar on a terminal, redrawn in place."""

    look_every: float = 0.5

    def __init__(self, name: str, live: Live, now: Callable[[], float] = time.monotonic) -> None:
        self._name = name if len(name) <= NAME_MOST else f"…{name[1 - NAME_MOST :]}"
        self._live = live
        self._now = now
        self._pace = figures.Pace()
        self._begun = now()
        self._ended: Table | None = None
        """The bar of a batch that has ended; it stays while the results are downloaded."""

    def transfer(self, doing: str, done: int, total: int) -> None:
        words = [f"{figures.size(done)} of {figures.size(total)}", doing]
        if self._ended is None:
            self._live.update(self._bar(done, total, words))
        else:
            self._live.update(Group(self._ended, Text(f" {' '.join(words)}", style="dim")))

    def show(self, seen: bytes) -> None:
        batch, now = read_batch(seen), self._now()
        pace = self._pace.see(now, batch)
        bar = self._bar(batch.done, batch.counts.total, figures.headline(batch, pace))
        rows: list[RenderableType] = [bar]
        self._ended = bar if batch.ended else None
        if batch.counts.total:
            rows.append(Text(f" {figures.details(batch)}", style="dim"))
        if concern := figures.concern(batch, now - self._begun, pace):
            rows.append(Text(f" {concern}", style="yellow"))
        self._live.update(Group(*rows))

    def say(self, text: str) -> None:
        self._live.console.print(text, highlight=False, markup=False)

    def _bar(self, done: int, total: int, words: list[str]) -> Table:
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1, min_width=8)
        for _ in words:
            table.add_column(no_wrap=True)
        table.add_row(Text(self._name, style="bold"), ProgressBar(total or 1, done), *words)
        return table


class Lines:
    """A line now and then, for logs and pipes."""

    look_every: float = 1.0

    def __init__(self, name: str, now: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._now = now
        self._pace = figures.Pace()
        self._begun = now()
        self._said = ""
        self._said_at = -LINE_EVERY

    def transfer(self, doing: str, done: int, total: int) -> None:
        if done == total:
            self.say(f"{self._name}  {figures.size(total)} {doing}")

    def show(self, seen: bytes) -> None:
        batch, now = read_batch(seen), self._now()
        pace = self._pace.see(now, batch)
        if now - self._said_at < LINE_EVERY and not batch.ended:
            return
        why = [figures.limits(batch), figures.concern(batch, now - self._begun, pace)]
        words = [self._name, *figures.headline(batch, pace), *([] if batch.ended else why)]
        text = "  ".join(word for word in words if word)
        if text != self._said:
            self._said, self._said_at = text, now
            self.say(text)

    def say(self, text: str) -> None:
        click.echo(text, err=True)


class Objects:
    """The batch object as it came, one a line, whenever it has changed."""

    look_every: float = 1.0

    def __init__(self) -> None:
        self._seen = b""

    def transfer(self, doing: str, done: int, total: int) -> None:
        return

    def show(self, seen: bytes) -> None:
        if seen != self._seen:
            self._seen = seen
            click.echo(seen)
            sys.stdout.flush()

    def say(self, text: str) -> None:
        click.echo(text, err=True)


@contextmanager
def open_screen(name: str) -> Iterator[Screen]:
    """Show progress on standard error: the bar if it is a terminal, else lines."""
    if not sys.stderr.isatty():
        yield Lines(name)
        return
    with Live(console=Console(stderr=True), refresh_per_second=8, transient=False) as live:
        yield Bar(name, live)
