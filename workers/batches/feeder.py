"""The way of a batch's lines into the pipeline: in order, in a bounded window, and again where it is needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import anyio

from pipeline import failpoints
from pipeline.errors import ConfigMismatch, DeadlineExceeded
from pipeline.job import ErrorFields, Job
from pipeline.stores.batch_lines import LineError, name_of
from pipeline.stores.batch_records import BatchRequest
from pipeline.stores.lines import Line
from pipeline.transport.feeding import FeedTransport
from workers.batches import answers
from workers.batches.input import Input
from workers.batches.ledger import Ledger, Outcomes
from workers.batches.lines import LineReader, OpenLine, job_id
from workers.batches.outages import needed
from workers.batches.parts import ERRORS
from workers.batches.window import Window

FEED_MOST: Final = 256
"""Lines of one admission."""

RESERVE: Final = 512
"""Lines the record calls fed before they are: so it need not be written for each admission."""

IDLE: Final = 0.25
"""Seconds after which a feeder with nothing to do looks again."""

TRIES: Final = 3
"""Jobs of a line that may run into their deadline before the line ends in an error."""

LAGGING_REST: Final = 10.0
"""Seconds a line rests that a newer configuration may know: this process is about to be replaced."""

REFUSED_PAUSE: Final = 1.0
"""Seconds without feeding after a line did not get into Redis: a full server would refuse the others as well."""


class Outgoing(NamedTuple):
    """What goes into Redis for a line."""

    line: OpenLine
    job: Job
    body: bytes


class Feeder:
    """Feeds one batch."""

    def __init__(
        self,
        request: BatchRequest,
        ledger: Ledger,
        window: Window,
        source: Input,
        reader: LineReader,
        transport: FeedTransport,
    ) -> None:
        self._request = request
        self._ledger = ledger
        self._window = window
        self._input = source
        self._reader = reader
        self._transport = transport

    async def run(self) -> None:
        """Feed until every line has its outcome, or is a dead letter. Raises Superseded."""
        while not self._is_done():
            changed = self._window.changed
            # Of a batch that has expired a job would have no time, and that is not to its line's account.
            is_over = self._transport.time() >= self._request.expires
            fed = not is_over and (await self._again() or await self._fresh())
            if not fed and not self._is_done():
                with anyio.move_on_after(IDLE):
                    await changed.wait()

    def _is_done(self) -> bool:
        return self._ledger.done.count + len(self._window.aside) >= self._ledger.record.total

    async def _again(self) -> bool:
        """Feed the lines whose rest is over; return whether there were any."""
        lines = self._window.awake(anyio.current_time(), FEED_MOST)
        given_up = [(line, too_late()) for line in lines if line.tries >= TRIES]
        tried = [line for line in lines if line.tries < TRIES]
        outgoing = []
        for line, text in zip(tried, await self._input.again(tried), strict=True):
            found = self._prepare(text, line)
            if isinstance(found, Outgoing):
                outgoing.append(found)
            elif found is not None:
                given_up.append((line, found))
        self._ledger.tally.retries += len(outgoing)
        await self._give_up(given_up)
        await self._admit(outgoing)
        return bool(lines)

    async def _fresh(self) -> bool:
        """Feed lines that were never fed, once the record says that they were; return whether there are any."""
        window = self._window
        lines = await self._input.next(min(FEED_MOST, window.room_for_new), window.room_in_bytes)
        if not lines:
            return False
        if lines[-1].number > self._ledger.record.fed:
            await self._ledger.save(fed=lines[-1].number + RESERVE)
        outgoing, given_up = [], []
        for line in lines:
            open_line = OpenLine(line)
            window.add(open_line)
            found = self._prepare(line, open_line)
            if isinstance(found, ErrorFields):
                given_up.append((open_line, found))
            elif found is not None and not self._holds_up(found):
                outgoing.append(found)
        await self._give_up(given_up)
        await self._admit(outgoing)
        return True

    def _holds_up(self, outgoing: Outgoing) -> bool:
        """Whether a line has to wait, because others wait for what it needs."""
        window = self._window
        return window.troubled and window.hold_up(outgoing.line, needed(outgoing.job, outgoing.line.group))

    def _prepare(self, text: Line, line: OpenLine) -> Outgoing | ErrorFields | None:
        """Return the next job of a line, or why it cannot run any more, although it once could; None: not now."""
        request = self._reader.read(text)
        if isinstance(request, LineError):
            line.custom_id = name_of(text)
            if self._transport.may_lag(self._request.config, self._request.created):
                self._ledger.tally.put_off(ConfigMismatch.code)
                line.code = ConfigMismatch.code
                self._window.rest(line, anyio.current_time() + LAGGING_REST)
                return None
            return ErrorFields(status=400, type="invalid_request_error", code=request.code, message=request.message)
        line.custom_id, line.group = request.custom_id, self._reader.group(request.model)
        line.fed += 1
        name = job_id(self._request.hex, self._ledger.record.owner, line)
        return Outgoing(line, self._reader.job(request, name, self._transport.now()), request.body)

    async def _admit(self, outgoing: list[Outgoing]) -> None:
        outgoing = [found for found in outgoing if found.line.number in self._window.open]
        if not outgoing:
            return
        now = anyio.current_time()
        for line, job, _ in outgoing:
            self._window.under_way(line, job.id, now)
        if failpoints.ARMED:
            await failpoints.reach("feed.mid_feed")
        if not self._transport.has_lease(self._request.hex):
            await self._ledger.check()  # or we would feed for a batch that is somebody else's by now, or over
        batches = await self._transport.add([(job, body) for _, job, body in outgoing])
        for (line, job, _), batch in zip(outgoing, batches, strict=True):
            if line.job != job.id:
                continue  # it was answered, or lost and fed again, meanwhile
            line.admission = batch
            if not batch:
                self._window.rest(line, 0.0)
        if not all(batches):
            await anyio.sleep(REFUSED_PAUSE)

    async def _give_up(self, lines: Iterable[tuple[OpenLine, ErrorFields]]) -> None:
        """Write these errors of lines, except of those that have an outcome after all."""
        outcomes = Outcomes(ERRORS)
        for line, error in lines:
            if line.number not in self._window.open:
                continue
            text = answers.refused(self._request.hex, line.number, line.custom_id, error)
            outcomes.add(line.number, text, error.code)
            self._window.close(line.number)
        if outcomes.data:
            await self._ledger.write(outcomes)


def too_late() -> ErrorFields:
    """Return the error of a line whose jobs all ended without an answer."""
    return DeadlineExceeded(f"the line had no answer within batch_line_timeout, {TRIES} times").fields("feed")
