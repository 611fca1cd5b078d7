"""The dispatch stage: sends a job's body to a deployment of its model, and the answer to the client."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import msgspec

from pipeline import failpoints, metrics
from pipeline.catalog import Catalog, Group, allows
from pipeline.errors import (
    ConfigMismatch,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    PipelineError,
    UpstreamError,
)
from pipeline.job import BATCH, LIVE, Facts, Job
from pipeline.open_files import connections_left
from pipeline.settings import Deployment, Settings, for_batches
from pipeline.stage import Defer, Delivery, Done, Fail, Outcome, StageContext, StageSpec, put_off
from workers.providers._calls import Call, Calls
from workers.providers._dialect import Fields, LocalAnswer, UpstreamRequest
from workers.providers._fields import kept_fields
from workers.providers._http import Sender
from workers.providers._remaining import Remaining, remaining
from workers.routing.cooldown import LocalCooldowns
from workers.routing.gate import Postponed
from workers.routing.lane import BatchRouter, Gates
from workers.routing.router import Attempt, Router, resting

_EVENT_STREAM: Final = "text/event-stream"


class _Lane(msgspec.Struct, frozen=True):
    """How the calls of a lane are made: what the models are, in its eyes, and who chooses among deployments."""

    catalog: Catalog
    calls: Calls
    router: Router


class DispatchStage:
    """Find the model's group, make the body for its provider, and let the router try."""

    def __init__(self, settings: Settings, sender: Sender, routers: Mapping[str, Router]) -> None:
        """Make one; `routers` are by lane."""
        self._digest = settings.digest
        self._sender = sender
        self._routers = routers
        self.rotate(settings)

    def rotate(self, settings: Settings) -> None:
        """Take over keys; calls that were prepared go on with those they have."""
        environment = {**os.environ, **settings.environment}
        self._lanes = {
            lane: _Lane(Catalog(seen), Calls(environment), self._routers[lane])
            for lane, seen in ((LIVE, settings), (BATCH, for_batches(settings)))
        }

    async def handle(self, delivery: Delivery) -> Outcome:
        """Answer one job, or say why it cannot be answered."""
        job = delivery.job
        lane = self._lanes[job.lane]
        group = lane.catalog.group(job.model)
        if group is None:
            return self._unknown(job)
        call = _JobCall(delivery, group, lane.calls, self._sender)
        try:
            call.fields = kept_fields(job.operation, delivery.body, stream=job.stream)
            done = await lane.router.run(group, call)
        except Postponed as later:
            return _postponed(delivery, later, call)
        except (UpstreamError, InvalidRequest, DeadlineExceeded) as error:
            return Fail(error, call.facts())
        metrics.TOKENS[done.facts.deployment, "prompt"].inc(done.facts.prompt_tokens)
        metrics.TOKENS[done.facts.deployment, "completion"].inc(done.facts.completion_tokens)
        return done

    def _unknown(self, job: Job) -> Outcome:
        if job.config == self._digest:
            catalog = self._lanes[job.lane].catalog
            known = tuple(name for name in catalog.names() if allows(job.allowed_models, name))
            close = catalog.closest(job.model, known)
            hint = f"did you mean {' or '.join(close)}?" if close else "see /v1/models for the names there are"
            return Fail(_at_dispatch(ModelNotFound, f"model {job.model[:200]!r} does not exist", hint), job.facts)
        # A rollout is under way: another worker may know the model, or this one will be replaced.
        if later := put_off(job):
            return later
        message = f"no worker knows model {job.model[:200]!r}: ingress and workers have different configurations"
        return Fail(
            _at_dispatch(ConfigMismatch, message, "restart the workers with the current configuration"), job.facts
        )


def _postponed(delivery: Delivery, later: Postponed, call: _JobCall) -> Outcome:
    """
    Put a job off. Back to who fed it goes one whose time would run out, whose turn is not known yet, or who finds as
    many put off as may be.
    """
    job, facts = delivery.job, call.facts()
    for_the_call = (job.deadline - job.admitted) / 2000
    refusal = resting(facts.model, later.seconds)
    if later.far or delivery.remaining - later.seconds < for_the_call:
        return Fail(refusal, facts)
    return Defer(later.seconds, msgspec.structs.replace(job, facts=facts), otherwise=refusal)


def _at_dispatch(kind: type[PipelineError], message: str, hint: str) -> PipelineError:
    return kind(message, hint=hint, stage="dispatch")


class _JobCall:
    """One job as the router sees it: how it is sent to a deployment, and what has happened to it so far."""

    def __init__(self, delivery: Delivery, group: Group, calls: Calls, sender: Sender) -> None:
        job = delivery.job
        self.id = job.id
        self.retries = job.retries
        self.stream = job.stream
        self.started = False
        self.fields: Fields = {}
        self._delivery = delivery
        self._group = group
        self._calls = calls
        self._sender = sender
        self._attempts = 0
        self._deployment = ""
        self._provider_s = 0.0
        self._began = 0.0
        self._answered: Mapping[bytes, bytes] = {}

    @property
    def remaining(self) -> float:
        """Seconds until the job's deadline."""
        return self._delivery.remaining

    def left(self) -> Remaining | None:
        """Return what the last attempt's answer said is left of the provider's limit."""
        return remaining(self._answered)

    def facts(self, usage: tuple[int, int] = (0, 0)) -> Facts:
        """Return what happened so far; an attempt under way counts up to now."""
        earlier = self._delivery.job.facts
        under_way = time.perf_counter() - self._began if self._began else 0.0
        return msgspec.structs.replace(
            earlier,
            model=self._group.name,
            deployment=self._deployment or earlier.deployment,
            attempts=earlier.attempts + self._attempts,
            queue_ms=round(earlier.queue_ms + self._delivery.queued_ms, 3),
            provider_ms=round(earlier.provider_ms + (self._provider_s + under_way) * 1000, 3),
            prompt_tokens=usage[0],
            completion_tokens=usage[1],
        )

    def prepare(self, deployment: Deployment) -> Attempt[Done]:
        """Return the attempt on one deployment. Raises ModelDisabled or InvalidRequest."""
        call = self._calls.prepare(deployment, self._delivery.job.operation, self.fields)
        return partial(self._attempt, deployment, call)

    async def _attempt(self, deployment: Deployment, call: Call, timeout: float) -> Done:
        self._attempts += 1
        self._deployment = deployment.id
        self._began = time.perf_counter()
        self._answered = {}
        try:
            if failpoints.ARMED:
                await failpoints.reach("dispatch.before_provider")
            if isinstance(call.request, LocalAnswer):
                return await self._answer_locally(call.request)
            if self.stream:
                return await self._stream(call, call.request, timeout)
            return await self._whole(call, call.request, timeout)
        finally:
            self._provider_s += time.perf_counter() - self._began
            self._began = 0.0

    async def _whole(self, call: Call, request: UpstreamRequest, timeout: float) -> Done:
        received = await self._sender.call(request, timeout)
        self._answered = received.fields
        if failpoints.ARMED:
            await failpoints.reach("dispatch.after_response")
        if received.status != 200:
            raise call.provider.error(received.status, received.headers, received.body, call.endpoint)
        answer = call.provider.response(self._delivery.job.operation, received.body, call.endpoint)
        content_type = received.content_type or "application/json"
        return Done(answer.body, self.facts(answer.usage), content_type=content_type)

    async def _stream(self, call: Call, request: UpstreamRequest, timeout: float) -> Done:
        remaining = self.remaining
        between = timeout if timeout < remaining else math.inf
        async with self._sender.stream(request, between=between, total=max(remaining, 0.001)) as upstream:
            if upstream.status != 200 or not upstream.content_type.startswith(_EVENT_STREAM):
                body = await upstream.read()
                raise call.provider.error(upstream.status, upstream.headers, body, call.endpoint)
            reader = call.provider.stream(self._delivery.job.operation, call.endpoint)

            def take(data: bytes) -> bool:
                room = self._write(reader.feed(data))
                return room and not reader.finished and reader.failure is None

            while await upstream.follow(take):
                if reader.failure is not None:
                    raise reader.failure
                if reader.finished:
                    await upstream.drain()
                    break
                await self._delivery.room()
            else:
                self._write(reader.close())
        return Done(facts=self.facts(reader.usage), content_type=_EVENT_STREAM)

    async def _answer_locally(self, answer: LocalAnswer) -> Done:
        if not answer.events:
            return Done(answer.body, self.facts(answer.usage))
        for event in answer.events:
            if not self._write(event):
                await self._delivery.room()
        return Done(facts=self.facts(answer.usage), content_type=_EVENT_STREAM)

    def _write(self, data: bytes) -> bool:
        """Pass events on, the first with the facts for the headers; return whether there is room for more."""
        if not data:
            return True
        if self.started:
            return self._delivery.write(data)
        self.started = True
        return self._delivery.write(data, self.facts(), _EVENT_STREAM)


@asynccontextmanager
async def _open(context: StageContext) -> AsyncIterator[DispatchStage]:
    settings = context.settings
    chance = random.Random()  # noqa: S311 - spreads load, keeps no secret
    cooldowns = LocalCooldowns(settings.router)
    gates = Gates(cooldowns, chance, {known.id: known.rpm for known in settings.deployments if known.rpm})
    context.resting.models = partial(gates.resting, settings.deployments)
    context.resting.deployments, context.resting.heed = gates.rests, gates.heed
    routers = {
        LIVE: Router(settings.router, cooldowns, chance, limited=gates.hold),
        BATCH: BatchRouter(settings.router, gates, chance),
    }
    async with Sender(settings.dispatch) as sender:
        opened = DispatchStage(settings, sender, routers)
        context.rotation.also(opened.rotate)
        yield opened


def _poisoned(job_id: str) -> PipelineError:
    message = f"job {job_id} took its worker down every time it was dispatched"
    return _at_dispatch(InternalError, message, "the operator finds it among the dead letters")


def _slots(settings: Settings) -> int:
    return min(settings.dispatch.slots, connections_left())  # a call has a connection, and that is an open file


stage = StageSpec(name="dispatch", max_deliveries=5, slots=_slots, open=_open, poisoned=_poisoned)
