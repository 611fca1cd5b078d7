"""The way back: answers to a batch's lines are written, made durable, and then settled."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Final

import anyio

from pipeline import logs
from pipeline.errors import TransportError, UpstreamForbidden
from pipeline.job import ErrorFields, Reply
from pipeline.stores.batch_records import BatchRequest
from pipeline.transport.connection import Backoff
from pipeline.transport.deadletters import runs_again
from pipeline.transport.feeding import READ_COUNT, Arrived, LineStream
from pipeline.transport.keyspace import DEAD_LIMIT
from workers.batches import answers
from workers.batches.forbidden import Forbidden
from workers.batches.ledger import Ledger, Outcomes
from workers.batches.lines import OpenLine, line_of
from workers.batches.outages import PROMPTS, REMEDIES, missed, served
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

    def __init__(
        self, request: BatchRequest, ledger: Ledger, window: Window, stream: LineStream, tries: int | None
    ) -> None:
        """Make one; `tries` is how often a line may fail, any number of times if None."""
        self._request = request
        self._ledger = ledger
        self._window = window
        self._stream = stream
        self._tries = tries or math.inf
        self._forbidden = Forbidden()
        self._results = Outcomes(RESULTS)
        self._errors = Outcomes(ERRORS)

    async def run(self) -> None:
        """Collect for ever. Raises Superseded."""
        backoff, told = Backoff(), False
        while True:
            try:
                arrived = await self._stream.read()
            except TransportError as error:
                if not told:
                    log.warning("answers cannot be read", batch=self._request.id, error=str(error))
                told = True
                await backoff.pause()
                continue
            backoff.reset()
            told = False
            if arrived:
                await self._take(arrived)
                if len(arrived) < min(READ_COUNT, len(self._window.open) // MANY):
                    await anyio.sleep(GATHER)

    async def _take(self, arrived: list[Arrived]) -> None:
        for answer in arrived:
            number = line_of(answer.reply.id)
            if runs_again(answer.reply):
                self._window.bring_back(number)
            elif (line := self._window.get(number)) is not None:  # otherwise it is a repeat
                await self._conclude(line, answer)
                if len(self._results.data) + len(self._errors.data) > APPEND_BYTES:
                    await self.write()
        await self.write()  # nothing, maybe: but only if the answers are ours to drop
        self._stream.settle()
        self._window.tell()

    async def _conclude(self, line: OpenLine, answer: Arrived) -> None:
        """Take note of a line's outcome, or that it has to be fed again."""
        reply, batch = answer.reply, self._request.hex
        if reply.error is not None:
            if self._try_again(line, reply, reply.error):
                return
            if reply.error.code not in answers.PASSING:
                self._served(line, served(reply, line.group))
            text = answers.refused(batch, line.number, line.custom_id, reply.error, reply.facts)
            if reply.error.code in answers.DEAD:
                self._window.set_aside(line, text, reply.error.code)
                self.fail_aside(DEAD_LIMIT)
                return
            self._errors.add(line.number, text, reply.error.code)
            self._window.close(line.number)
            return
        body = await self._stream.body(answer)
        if body is None:
            self._window.rest(line, 0.0)
            return
        if self._window.get(line.number) is not line:
            return  # it was given up meanwhile
        self._served(line, served(reply, line.group))
        self._results.add(line.number, answers.answered(batch, line.number, line.custom_id, reply, body))
        self._results.usage.add(answers.used(body))
        self._ledger.tally.answered(reply.facts.provider_ms)
        if line.job == reply.id:
            self._forbidden.answered(line, reply.facts.deployment)
        self._window.close(line.number)

    def _try_again(self, line: OpenLine, reply: Reply, error: ErrorFields) -> bool:
        """Let a line rest after an error that may pass; return False for one that is the line's outcome."""
        if error.code not in answers.PASSING and error.code != answers.TOO_LATE:
            return False
        # For an earlier job of the line, as for one of a line that rests already, nobody waits any more.
        if line.number not in self._window.open or line.job not in ("", reply.id):
            return True
        if error.code == UpstreamForbidden.code and self._forbidden.is_about(line, reply.facts.deployment):
            self._served(line, served(reply, line.group))
            return False
        self._ledger.tally.put_off(error.code)
        if error.code == answers.TOO_LATE:
            line.tries += 1
            self._window.rest(line, 0.0)
            return True
        self._defer(line, missed(reply, line.group), error)
        if reply.facts.prompt:
            self._served(line, [PROMPTS])
        line.failures += error.code in answers.FAILING
        return line.failures < self._tries

    def _defer(self, line: OpenLine, need: str, error: ErrorFields) -> None:
        if self._window.defer(line, need, error, anyio.current_time()):
            log.warning("lines wait", batch=self._request.id, need=need, code=error.code, hint=REMEDIES.get(error.code))

    def _served(self, line: OpenLine, needs: Collection[str]) -> None:
        if not self._window.outages:
            return
        for need in self._window.met(needs, line.number, anyio.current_time()):
            log.info("lines go on", batch=self._request.id, need=need)

    def fail_aside(self, most: int = 0) -> None:
        """Take note that the oldest dead letters do not run again, until `most` are left that still may."""
        for failure in self._window.aside.fail(most):
            self._errors.add(*failure)

    async def write(self) -> None:
        """Write what was concluded so far; whoever was cancelled in it can go on with it. Raises Superseded."""
        await self._ledger.write(self._results, self._errors)
