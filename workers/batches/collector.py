"""The way back: answers to a batch's lines are written, made durable, and then settled."""

from __future__ import annotations

from typing import Final

import anyio

from pipeline import logs
from pipeline.errors import TransportError
from pipeline.job import ErrorFields
from pipeline.stores.batches import BatchRequest
from pipeline.transport.connection import Backoff
from pipeline.transport.feeding import READ_COUNT, Arrived, LineStream
from workers.batches import answers
from workers.batches.ledger import Ledger, Outcomes
from workers.batches.lines import OpenLine, line_of
from workers.batches.parts import ERRORS, RESULTS
from workers.batches.window import Window

APPEND_BYTES: Final = 4 * 2**20
"""Answers held before they are written, in bytes, give or take one."""

GATHER: Final = 0.05
"""Seconds in which answers gather before the next look, where many lines are open: each write waits for the disk."""

MANY: Final = 8
"""An answered line in so many open ones is worth a write at once."""

log = logs.logger("feed")


class Collector:
    """Collects the answers of one batch; it is the only reader of their stream."""

    def __init__(self, request: BatchRequest, ledger: Ledger, window: Window, stream: LineStream) -> None:
        self._request = request
        self._ledger = ledger
        self._window = window
        self._stream = stream
        self._results = Outcomes(RESULTS)
        self._errors = Outcomes(ERRORS)

    async def run(self) -> None:
        """Collect for ever. Raises Superseded."""
        backoff = Backoff()
        while True:
            try:
                arrived = await self._stream.read()
                backoff.reset()
            except TransportError as error:
                log.warning("answers cannot be read", batch=self._request.id, error=str(error))
                await backoff.pause()
                continue
            if arrived:
                await self._take(arrived)
                if len(arrived) < min(READ_COUNT, len(self._window.open) // MANY):
                    await anyio.sleep(GATHER)

    async def _take(self, arrived: list[Arrived]) -> None:
        for answer in arrived:
            line = self._window.open.get(line_of(answer.reply.id))
            if line is not None:  # otherwise it is a repeat
                await self._conclude(line, answer)
                if len(self._results.data) + len(self._errors.data) > APPEND_BYTES:
                    await self._write()
        await self._write()
        self._stream.settle()
        self._window.tell()

    async def _conclude(self, line: OpenLine, answer: Arrived) -> None:
        """Take note of a line's outcome, or that it has to be fed again."""
        reply, batch = answer.reply, self._request.hex
        if reply.error is not None:
            if self._passes(line, answer, reply.error):
                return
            text = answers.refused(batch, line.number, line.custom_id, reply.error, reply.facts)
            self._errors.add(line.number, text, reply.error.code)
            self._window.close(line.number)
            return
        body = await self._stream.body(answer)
        if body is None:
            line.rest(0.0)
            return
        self._results.add(line.number, answers.answered(batch, line.number, line.custom_id, reply, body))
        answers.add_usage(self._results.usage, body)
        self._ledger.tally.answered(reply.facts.provider_ms)
        self._window.close(line.number)

    def _passes(self, line: OpenLine, answer: Arrived, error: ErrorFields) -> bool:
        """Whether a line is to be fed again after this error."""
        if error.code not in answers.PASSING and error.code != answers.TOO_LATE:
            return False
        if line.job in ("", answer.reply.id):  # of an earlier job of the line nobody waits any more
            now = anyio.current_time()
            self._ledger.tally.put_off(error.code)
            if error.code == answers.TOO_LATE:
                line.wake = now  # with its job still there: it counts as a try
                line.job = line.job or answer.reply.id
            else:
                self._window.defer(line, now, error.retry_after)
        return True

    async def _write(self) -> None:
        results, self._results = self._results, Outcomes(RESULTS)
        errors, self._errors = self._errors, Outcomes(ERRORS)
        await self._ledger.write(results)
        await self._ledger.write(errors)
