"""The look at a whole batch before any of it runs: every line, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final

import msgspec
from anyio import CapacityLimiter, from_thread, to_thread

from pipeline.batch_requests import Judge, Request
from pipeline.settings import Settings
from pipeline.stores.batch_lines import LineError, duplicate, name_of
from pipeline.stores.blobs import Blob
from pipeline.stores.lines import CustomIds, Line, Splitter, read_lines, read_pieces

MOST_ERRORS: Final = 100
"""Errors that are reported; what a generator gets wrong is wrong in every line."""

THREADS: Final = CapacityLimiter(4)
"""Threads of their own: on each a look may wait for a read, which takes one of those that everybody shares."""

_decode_items: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Validation:
    """Reads a batch's input once; afterwards `total` is its number of requests and `errors` says what is wrong."""

    def __init__(self, blob: Blob, judge: Judge, settings: Settings) -> None:
        self.total = 0
        self.errors: list[LineError] = []
        self._blob = blob
        self._judge = judge
        self._longest = settings.files.max_line_bytes
        self._splitter = Splitter(self._longest)
        self._most = settings.batches.max_batch_lines
        embeds = judge.operation == "embeddings"
        self._most_inputs = settings.batches.max_embedding_inputs if embeds else None
        self._inputs = 0
        self._ids = CustomIds(lambda offset: from_thread.run(self._custom_id, offset))

    async def run(self, pause: Callable[[], Awaitable[object]]) -> None:
        """Look at every line, on a thread: a million of them take ten seconds. `pause` comes after each piece."""
        async for piece in read_pieces(self._blob):
            await to_thread.run_sync(self._take, piece, limiter=THREADS)
            await pause()
            if len(self.errors) >= MOST_ERRORS or self._too_many():
                break
        else:
            await to_thread.run_sync(self._look, self._splitter.end(), limiter=THREADS)
        if too_many := self._too_many():
            self.errors = [LineError("too_many_tasks", too_many)]
        elif not self.total:
            self.errors = [LineError("empty_file", "The file has no lines.")]

    def _too_many(self) -> str:
        """Return which limit the batch is above; empty while it is within them."""
        if self._splitter.count > self._most:  # what is remembered of each line is by its number
            return f"The file has more than {self._most} lines, blank ones included; split it."
        if self._most_inputs is not None and self._inputs > self._most_inputs:
            return f"The batch has more than {self._most_inputs} inputs to embed; split it."
        return ""

    def _take(self, piece: bytes) -> None:
        self._look(self._splitter.feed(piece))

    def _look(self, lines: list[Line]) -> None:
        for line in lines:
            self.total += 1
            found = self._judge.read(line)
            if isinstance(found, LineError):
                self.errors.append(found)
            elif not self._ids.add(found.custom_id, line.offset):
                self.errors.append(duplicate(line))
            elif self._most_inputs is not None:
                self._inputs += count_inputs(found)
            if len(self.errors) >= MOST_ERRORS:
                return

    async def _custom_id(self, offset: int) -> str:
        """Return the `custom_id` of the line at `offset`, which was found to be valid."""
        async with aclosing(read_lines(self._blob, self._longest, offset)) as source:
            async for lines in source:
                if lines:  # a long one comes in several pieces
                    return name_of(lines[0])
        return ""


def count_inputs(request: Request) -> int:
    """Return how many texts a request asks to embed: an array of tokens is one, as a text is."""
    given = bytes(request.view.input)
    if not given.startswith(b"["):
        return 1
    items = _decode_items(given)
    return 1 if items and bytes(items[0])[:1] not in (b'"', b"[") else len(items)
