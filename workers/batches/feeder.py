"""The way of a batch's lines into the pipeline: in order, in a bounded window, and again where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import anyio

from pipeline import failpoints
from pipeline.errors import DeadlineExceeded
from pipeline.job import ErrorFields, Job
from pipeline.stores.batch_lines import LineError
from pipeline.stores.batches import BatchRequest
from pipeline.stores.lines import Line
from pipeline.transport.feeding import FeedTransport
from workers.batches import answers
from workers.batches.ledger import Ledger, Outcomes
from workers.batches.lines import LineReader, OpenLine, job_id
from workers.batches.parts import ERRORS
from workers.batches.window import TRIES, Window

FEED_MOST: Final = 256
"""Lines of one admission."""

RESERVE: Final = 512
"""Lines the record calls fed before they are: so it need not be written for each admission."""

PAUSE: Final = 0.25
"""Seconds after which a feeder with nothing to do looks again."""

RETRY: Final = 1.0
"""Seconds a line rests that did not get into Redis."""


class Outgoing(NamedTuple):
    """A line about to be fed."""

    line: OpenLine
    job: Job
    body: bytes


class Feeder:
    """Feeds one batch. `share` says how many of its lines may be open."""

    def __init__(
        self, request: BatchRequest, ledger: Ledger, window: Window, reader: LineReader, transport: FeedTransport
    ) -> None:
        self._request = request
        self._ledger = ledger
        self._window = window
        self._reader = reader
        self._transport = transport

    async def run(self, share: Callable[[], int]) -> None:
        """Feed until every line has its outcome. Raises Superseded."""
        ledger, window = self._ledger, self._window
        while ledger.done.count < ledger.record.total:
            changed = window.changed
            outgoing = await self._again()
            if not outgoing:
                outgoing = await self._fresh(min(FEED_MOST, share() - len(window.open)))
            if outgoing:
                await self._admit(outgoing)
            elif ledger.done.count < ledger.record.total:
                with anyio.move_on_after(PAUSE):
                    await changed.wait()

    async def _again(self) -> list[Outgoing]:
        """Return the open lines whose time came; a job without an answer in time counts as a try."""
        outgoing, given_up = [], []
        for line in self._window.due(anyio.current_time())[:FEED_MOST]:
            if line.job:
                line.tries += 1
            if line.tries >= TRIES:
                given_up.append((line, too_late()))
                continue
            found = self._prepare(await self._window.text(line), line)
            if isinstance(found, Outgoing):
                outgoing.append(found)
            else:
                given_up.append((line, found))
        self._ledger.tally.retries += len(outgoing)
        await self._give_up(given_up)
        return outgoing

    async def _fresh(self, room: int) -> list[Outgoing]:
        """Return lines that were never fed, once the record says that they were."""
        lines = await self._window.fresh(room) if room > 0 else []
        if not lines:
            return []
        if lines[-1].number > self._ledger.record.fed:
            await self._ledger.save(fed=lines[-1].number + RESERVE)
        outgoing, given_up = [], []
        for line in lines:
            open_line = OpenLine(line)
            self._window.add(open_line)
            found = self._prepare(line, open_line)
            if isinstance(found, Outgoing):
                outgoing.append(found)
            else:
                given_up.append((open_line, found))
        await self._give_up(given_up)
        return outgoing

    def _prepare(self, text: Line, line: OpenLine) -> Outgoing | ErrorFields:
        """Return the next job of a line, or why it cannot run any more: when it was validated it could."""
        request = self._reader.read(text)
        if isinstance(request, LineError):
            return ErrorFields(status=400, type="invalid_request_error", code=request.code, message=request.message)
        line.custom_id = request.custom_id
        line.fed += 1
        name = job_id(self._request.hex, self._ledger.record.owner, line)
        return Outgoing(line, self._reader.job(request, name, self._transport.now()), request.body)

    async def _admit(self, outgoing: list[Outgoing]) -> None:
        now = anyio.current_time()
        for line, job, _ in outgoing:
            self._window.under_way(line, job.id, now)
        if failpoints.ARMED:
            await failpoints.reach("feed.mid_feed")
        batches = await self._transport.add([(job, body) for _, job, body in outgoing])
        for (line, job, _), batch in zip(outgoing, batches, strict=True):
            if not batch and line.job == job.id:
                line.rest(anyio.current_time() + RETRY)
            line.admission = batch

    async def _give_up(self, lines: Iterable[tuple[OpenLine, ErrorFields]]) -> None:
        outcomes = Outcomes(ERRORS)
        for line, error in lines:
            text = answers.refused(self._request.hex, line.number, line.custom_id, error)
            outcomes.add(line.number, text, error.code)
            self._window.close(line.number)
        await self._ledger.write(outcomes)


def too_late() -> ErrorFields:
    """Return the error of a line whose jobs all ended without an answer."""
    return DeadlineExceeded(f"the line had no answer within batch_line_timeout, {TRIES} times").fields("feed")
