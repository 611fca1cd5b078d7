"""Lines of a batch's input on their way to becoming jobs, and while they are open."""

from __future__ import annotations

from pipeline.batch_requests import Judge, Request
from pipeline.catalog import Catalog
from pipeline.intake import DISPATCH, RESOLVE_DISPATCH
from pipeline.job import BATCH, PARTITION, Job
from pipeline.settings import Settings
from pipeline.stores.batch_records import BatchRequest
from pipeline.stores.lines import Line
from pipeline.transport import keyspace


class LineReader(Judge):
    """Turns lines into requests and jobs."""

    def __init__(self, request: BatchRequest, settings: Settings, catalog: Catalog) -> None:
        super().__init__(request.endpoint, request.allowed_models, catalog)
        self._request = request
        self._timeout_ms = int(settings.batches.batch_line_timeout * 1000)
        self._config = settings.digest
        self._expires = int(request.expires * 1000)
        self._reply_to = keyspace.LINES + request.hex

    def group(self, model: str) -> str:
        """Return the name of the group that serves a model, or its own if a prompt manager may know it."""
        group = self._catalog.group(model)
        return group.name if group else model

    def job(self, request: Request, job_id: str, now: int) -> Job:
        """Return the job of a line; `now` is the server's time in ms. It has until its batch expires, at most."""
        return Job(
            id=job_id,
            operation=self.operation,
            stages_left=DISPATCH if request.prompt is None else RESOLVE_DISPATCH,
            deadline=min(now + self._timeout_ms, self._expires),
            admitted=now,
            since=now,
            reply_to=self._reply_to,
            lane=BATCH,
            model=request.model,
            prompt=request.prompt,
            tenant=self._request.owner,
            allowed_models=self._request.allowed_models,
            retries=request.view.num_retries,
            endpoint=self._request.endpoint,
            config=self._config,
        )


class OpenLine:
    """A line that was handed to the pipeline, or will be again, and has no outcome yet."""

    __slots__ = (
        "admission", "code", "custom_id", "deferrals", "end", "failures", "fed", "fed_at", "forbidden", "group", "job",
        "limited", "need", "number", "offset", "tries", "wake",
    )  # fmt: skip

    def __init__(self, line: Line, custom_id: str = "") -> None:
        self.number = line.number
        self.offset = line.offset
        self.end = line.end
        self.custom_id = custom_id
        self.group = ""
        """Name of the group that serves the model it names, once it was fed by this owner."""
        self.fed = 0
        """How often it was fed by this owner, which names its jobs."""
        self.fed_at = 0.0
        """When its job was fed; 0 if this owner did not."""
        self.forbidden = 0.0
        """When the first job was fed that its provider answered with 403; 0 while there is none."""
        self.job = ""
        """Id of the job under way; empty while it rests, or when an earlier owner fed it."""
        self.admission = 0
        self.tries = 0
        """Jobs that ran into their deadline."""
        self.deferrals = 0
        self.failures = 0
        """Jobs that its provider or prompt manager failed on, as far as this owner knows."""
        self.need = ""
        """What it lacked the last time it was not served."""
        self.code = ""
        """Code of the error that said so."""
        self.limited = False
        """Whether that is there, but has a limit."""
        self.wake = 0.0
        """The end of its rest, or when its job should have been answered."""

    @property
    def size(self) -> int:
        """Bytes of the line."""
        return self.end - self.offset


def job_id(batch: str, owner: int, line: OpenLine) -> str:
    """Return the id of a line's next job. It tells the line, also to a later owner; the batch makes it unguessable."""
    return f"{PARTITION}-{batch}-{line.number}-{owner}.{line.fed}"


def line_of(job: str) -> int:
    """Return the number of the line that a job id of ours tells; 0 for another's."""
    words = job.split("-")
    return int(words[2]) if len(words) == 4 and words[2].isdecimal() else 0
