"""One batch in its owner's hands, from wherever it stands to its end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Final

import anyio
import msgspec

from pipeline import failpoints, logs, metrics
from pipeline.batch_validation import Validation
from pipeline.catalog import Catalog, allows
from pipeline.errors import ConfigMismatch, FileDamaged, NotFound, PipelineError, TransportError
from pipeline.settings import Settings
from pipeline.stores.batch_lines import LineError, name_of
from pipeline.stores.batch_records import BatchState
from pipeline.stores.batches import BatchStore
from pipeline.stores.blobs import Blob
from pipeline.stores.files import FileStore, Wanted
from pipeline.stores.lines import LONGEST, read_lines
from pipeline.stores.verified import Verified
from pipeline.transport.feeding import FeedTransport, LineStream
from workers.batches import answers
from workers.batches.collector import Collector
from workers.batches.feeder import Feeder
from workers.batches.input import Input
from workers.batches.ledger import Ledger, Outcomes, Superseded
from workers.batches.lines import LineReader, OpenLine
from workers.batches.parts import ERRORS, RESULTS, Done, Parts, adopt, open_parts, remove_parts
from workers.batches.search import Search
from workers.batches.window import Window

CANCEL_MOST: Final = 512

UNDONE: Final = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request had no answer before its batch was cancelled."),
}
"""The error of lines without an outcome, by what ended their batch."""

log = logs.logger("feed")


class Desk(msgspec.Struct, frozen=True):
    """What all batches of a process share."""

    settings: Settings
    catalog: Catalog
    store: BatchStore
    files: FileStore
    transport: FeedTransport


class BatchRun:
    """Owns one batch. What it knows is in the batch's files before anybody is told."""

    def __init__(self, desk: Desk, state: BatchState, owner: int) -> None:
        self._desk = desk
        self._request = request = state.request
        self._before = state.record
        self._owner = owner
        self._cancelled = state.cancelled
        self._ledger = Ledger(desk.store, request, msgspec.structs.replace(state.record, owner=owner), Done())
        self._reader = LineReader(request, desk.settings, desk.catalog)
        self._ended_by = ""
        self._collector: Collector | None = None

    @property
    def status(self) -> str:
        """How far the batch is; `paused` while it is in progress and all that is left waits for a later try."""
        record = self._ledger.record
        return "paused" if record.status == "in_progress" and record.progress.paused else record.status

    async def run(self, share: Callable[[], int]) -> None:
        """
        Bring the batch to its end, with `share()` lines open at most.

        Raises Superseded, StorageFull, StorageUnavailable and ConfigMismatch.
        """
        blobs, request, ledger = self._desk.store.blobs, self._request, self._ledger
        adopted = await adopt(blobs, request.id, self._before.parts, self._before.owner, ledger.done)
        await ledger.save(parts=adopted)
        async with open_parts(blobs, request.id, self._owner, adopted) as parts:
            ledger.open(parts)
            try:
                await self._use_input(parts, share)
            except NotFound:
                await self._fail(parts, LineError("input_file_not_found", "The input file does not exist any more."))
            except FileDamaged:
                message = "The input file is not what was uploaded; upload it again."
                await self._fail(parts, LineError("input_file_damaged", message))
        record = ledger.record
        await ledger.check()  # or the state that a later owner kept would be replaced
        cancelled = await self._desk.store.cancelled(request.id)  # maybe since we looked for the last time
        state = BatchState(request=request, record=record, claims=self._owner, cancelled=cancelled)
        await put_away(self._desk, state)
        metrics.BATCHES[record.status,].inc()
        counts = {"total": record.total, "completed": record.completed, "failed": record.failed}
        log.info("batch done", batch=request.id, tenant=request.owner, status=record.status, **counts)

    async def _use_input(self, parts: Parts, share: Callable[[], int]) -> None:
        """Process the input. Raises NotFound, FileDamaged and what `run` does."""
        file = await self._desk.files.input(self._request.input_file_id)
        async with self._desk.files.open(file) as blob:
            unread = self._before.status == "validating"
            await self._process(Verified(blob, file.sha256) if unread else blob, parts, share)

    async def _process(self, blob: Blob, parts: Parts, share: Callable[[], int]) -> None:
        window = Window(self._desk.settings.batches, share)
        stream = self._desk.transport.line_stream(self._request.hex)
        self._desk.transport.on_lost[self._request.id] = window.lose
        ended: Exception | None = None
        try:
            with anyio.CancelScope() as work:
                try:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(self._watch, window, stream, work)
                        await self._work(blob, window, stream, parts)
                        tasks.cancel_scope.cancel()
                except* (Superseded, PipelineError) as group:
                    ended = _first(group)
            if ended is not None:
                raise ended
            if not self._ledger.record.terminal:
                await self._end(blob, window, parts)
        finally:
            del self._desk.transport.on_lost[self._request.id]
            with anyio.CancelScope(shield=True):
                await stream.close()

    async def _work(self, blob: Blob, window: Window, stream: LineStream, parts: Parts) -> None:
        """Validate, then feed and collect until every line has its outcome."""
        ledger = self._ledger
        if ledger.record.status == "validating" and not await self._validate(blob, parts):
            return
        source = await self._take_over(blob, window)
        feeder = Feeder(self._request, ledger, window, source, self._reader, self._desk.transport)
        self._collector = collector = Collector(
            self._request, ledger, window, stream, self._desk.settings.batches.batch_line_tries
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collector.run)
            await feeder.run()
            tasks.cancel_scope.cancel()

    async def _validate(self, blob: Blob, parts: Parts) -> bool:
        """Look at every line; return whether the batch can run. Raises ConfigMismatch if others may know better."""
        validation = Validation(blob, self._reader, self._desk.settings)
        await validation.run(partial(failpoints.reach, "feed.validating"))
        if validation.errors:
            if self._desk.transport.may_lag(self._request.config, self._request.created):
                raise ConfigMismatch("its lines are wrong in this configuration, but it was made under another one")
            await self._fail(parts, *validation.errors)
            return False
        await self._ledger.reach("in_progress", self._desk.transport.time(), total=validation.total)
        return True

    async def _take_over(self, blob: Blob, window: Window) -> Input:
        """Open the lines that earlier owners fed and that have no outcome; return what follows: it was never fed."""
        fed, now = self._ledger.record.fed, anyio.current_time()
        if not fed:
            return Input(blob)
        async with aclosing(read_lines(blob, LONGEST)) as source:
            async for lines in source:
                for line in lines:
                    if line.number > fed:
                        return Input(blob, line.offset, line.number)
                    if line.number not in self._ledger.done:
                        window.inherit(OpenLine(line, name_of(line)), now)
        return Input(blob, blob.size, fed + 1)

    async def _watch(self, window: Window, stream: LineStream, work: anyio.CancelScope) -> None:
        """Look for what ends the batch early, keep its record fresh, and see whether lines were lost."""
        search = Search(self._request.hex, window, stream, self._desk.transport)
        while True:
            if self._cancelled is None:
                self._cancelled = await self._desk.store.cancelled(self._request.id)
            finalizing = self._ledger.record.status == "finalizing"  # then every line has its outcome
            if self._cancelled is not None or (self._desk.transport.time() >= self._request.expires and not finalizing):
                self._ended_by = "expired" if self._cancelled is None else "cancelled"
                work.cancel()
                return
            await self._ledger.check()  # before the answers are given another day to live
            with suppress(TransportError):  # it looks again
                await search.look()
            await self._report(window)
            await anyio.sleep(self._desk.store.blobs.look_every)

    async def _report(self, window: Window) -> None:
        """Keep the record fresh. Raises Superseded."""
        ledger, transport = self._ledger, self._desk.transport
        resting = len(window.rests)
        lines = {"open": len(window.open) + resting, "resting": resting, "dead": len(window.aside)}
        patterns = self._request.allowed_models
        seen = {model: rest for model, rest in transport.backing_off.items() if allows(patterns, model)}
        progress = ledger.progress(**lines, waiting=transport.waiting, backing_off=seen, paused=window.paused)
        if not ledger.tells(progress):
            await ledger.save(progress=progress)

    # The end

    async def _end(self, blob: Blob, window: Window, parts: Parts) -> None:
        """Give every line its outcome, and end the batch."""
        ledger = self._ledger
        status = self._ended_by or "completed"
        if status == "expired":
            status = await ledger.unless_cancelled(status)
        if status != "completed":
            await self._cancel_jobs(window.jobs)
        await self._write_held()
        if status == "completed":
            await ledger.reach("finalizing", self._desk.transport.time())
        elif ledger.record.total:
            await self._conclude_undone(blob, window, *UNDONE[status])
        await self._conclude(parts, status)

    async def _fail(self, parts: Parts, *errors: LineError) -> None:
        """End a batch that cannot go on; what is done of it stays."""
        await self._cancel_jobs([])
        await self._write_held()
        await self._conclude(parts, "failed", errors=errors)

    async def _conclude(self, parts: Parts, status: str, **last: Any) -> None:
        """Make the files, and write the last record."""
        ledger, files = self._ledger, await self._make_files(parts)
        if failpoints.ARMED:
            await failpoints.reach("feed.before_terminal")
        status = await ledger.unless_cancelled(status)
        await ledger.reach(status, self._desk.transport.time(), progress=ledger.progress(), **files, **last)
        if failpoints.ARMED:
            await failpoints.reach("feed.after_terminal")

    async def _cancel_jobs(self, ours: list[str]) -> None:
        """Cancel what is under way, also where an earlier owner fed it; some of ours may be on the way to Redis."""
        if not self._ledger.record.fed:
            return
        try:
            found = await self._desk.transport.under_way(self._request.hex)
            jobs = list({*ours, *found.jobs})
            for at in range(0, len(jobs), CANCEL_MOST):
                await self._desk.transport.cancel(jobs[at : at + CANCEL_MOST])
        except TransportError:
            return  # they end with their deadlines, and nobody reads their answers

    async def _conclude_undone(self, blob: Blob, window: Window, code: str, message: str) -> None:
        errors, done = Outcomes(ERRORS), self._ledger.done
        async for lines in read_lines(blob, LONGEST):
            for line in lines:
                if line.number not in done:
                    known = window.get(line.number)
                    why = f"Its last try ended in {known.code}. {message}" if known and known.code else message
                    text = answers.unrun(self._request.hex, line.number, name_of(line), code, why)
                    errors.add(line.number, text, code)
            await self._ledger.write(errors)

    async def _write_held(self) -> None:
        """Write the outcomes that were collected and are not written."""
        if self._collector is not None:
            self._collector.fail_aside()
            await self._collector.write()

    async def _make_files(self, parts: Parts) -> dict[str, str | None]:
        return {
            "output_file_id": await self._publish(parts, RESULTS, self._request.output_file_id),
            "error_file_id": await self._publish(parts, ERRORS, self._request.error_file_id),
        }

    async def _publish(self, parts: Parts, kind: str, file_id: str) -> str | None:
        """Make a file of all results, or of all errors, and return its id; None when there are none."""
        if not parts.size(kind):
            return None
        await self._ledger.patiently(lambda: self._write_file(parts, kind, file_id))
        return file_id

    async def _write_file(self, parts: Parts, kind: str, file_id: str) -> None:
        """Write a file, all of it or nothing. Raises StorageFull and Superseded."""
        request, files = self._request, self._desk.files
        name = "output" if kind == RESULTS else "error"
        wanted = Wanted(f"{request.id}_{name}.jsonl", "batch_output", request.output_expires_after)
        async with files.blobs.write(file_id, parts.size(kind)) as writer:
            await parts.copy(kind, writer)
            if failpoints.ARMED:
                await failpoints.reach("feed.before_rename")
            await self._ledger.check()  # copying takes long, and a later owner's file may be there, or deleted again
            await files.publish(file_id, request.owner, wanted, await writer.commit())


async def put_away(desk: Desk, state: BatchState) -> None:
    """Let of a batch that has ended only what is kept stay; whoever finds one may do it, also again."""
    await desk.transport.drop_answers(state.request.hex)
    await remove_parts(desk.store.blobs, state.request.id, state.claims)
    await desk.store.put_away(state)


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    """Return the first error of a group of groups."""
    found: Exception | BaseExceptionGroup[Exception] = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
