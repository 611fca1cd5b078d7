"""The look at a whole batch before any of it runs: every line, and what is wrong with them."""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

from anyio import from_thread, to_thread

from pipeline import failpoints
from pipeline.settings import Settings
from pipeline.stores.batch_lines import LineError, duplicate
from pipeline.stores.blobs import Blob
from pipeline.stores.lines import CustomIds, Line, read_lines
from workers.batches.lines import LineReader

MOST_ERRORS: Final = 100
"""Errors that are reported; what a generator gets wrong is wrong in every line."""


class Validation:
    """Reads a batch's input once; afterwards `total` is its number of lines and `errors` says what is wrong."""

    def __init__(self, blob: Blob, reader: LineReader, settings: Settings) -> None:
        self.total = 0
        self.errors: list[LineError] = []
        self._blob = blob
        self._reader = reader
        self._longest = settings.files.max_line_bytes
        self._most = settings.batches.max_batch_lines
        self._ids = CustomIds(lambda offset: from_thread.run(self._custom_id, offset))

    async def run(self) -> None:
        """Look at every line, on a thread: a million of them take half a minute."""
        async for lines in read_lines(self._blob, self._longest):
            await to_thread.run_sync(self._take, lines)
            if failpoints.ARMED:
                await failpoints.reach("feed.validating")
            if len(self.errors) >= MOST_ERRORS or self.total > self._most:
                break
        if self.total > self._most:
            message = f"The batch has more than {self._most} lines; split it."
            self.errors = [LineError("too_many_tasks", message)]
        elif not self.total:
            self.errors = [LineError("empty_file", "The file has no lines.")]

    def _take(self, lines: list[Line]) -> None:
        for line in lines:
            self.total += 1
            found = self._reader.read(line)
            if isinstance(found, LineError):
                self.errors.append(found)
            elif not self._ids.add(found.custom_id, line.offset):
                self.errors.append(duplicate(line))
            if len(self.errors) >= MOST_ERRORS:
                return

    async def _custom_id(self, offset: int) -> str:
        """Return the `custom_id` of the line at `offset`, which was found to be valid."""
        async with aclosing(read_lines(self._blob, self._longest, offset)) as source:
            line, *_ = await anext(source)
        return self._reader.custom_id(line)
