"""The resolve stage: ask the operator's prompt managers for the body to send upstream, and settle on a model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Final

import msgspec

from pipeline import failpoints
from pipeline.catalog import Catalog, Group, allows
from pipeline.errors import (
    ConfigMismatch,
    InvalidRequest,
    ModelNotFound,
    NotAllowed,
    PipelineError,
    PromptModelUnknown,
    PromptWorkerLost,
)
from pipeline.job import Facts, Job, encode_json
from pipeline.operations import OPERATIONS
from pipeline.stage import Defer, Delivery, Fail, Forward, Outcome, Stage, StageContext, StageSpec, put_off
from workers.prompts.calls import Displaced
from workers.prompts.consult import consult
from workers.prompts.isolation import Isolation, open_isolation
from workers.prompts.loading import Managers, load_managers
from workers.prompts.request import decode_body, hook_request
from workers.prompts.results import HookResult, is_empty, merge


class ResolveStage:
    """Rewrites a job's body as its prompt manager says, once per delivery."""

    def __init__(self, managers: Managers, isolation: Isolation, catalog: Catalog, digest: str) -> None:
        self._managers = managers
        self._isolation = isolation
        self._catalog = catalog
        self._digest = digest

    async def handle(self, delivery: Delivery) -> Outcome:
        """Return the job with its prompt resolved."""
        job, began = delivery.job, perf_counter()
        group = self._catalog.group(job.model) if job.model else None
        # Before the hook, which may choose a model of its own, is called more than once for nothing.
        if job.model and group is None and job.config != self._digest and (later := put_off(job)):
            return later
        facts = msgspec.structs.replace(
            job.facts,
            prompt_id=job.prompt.id if job.prompt else "",
            queue_ms=job.facts.queue_ms + delivery.queued_ms,
        )
        try:
            return await self._resolve(delivery, group, facts, began)
        except Displaced:  # by hooks that do not return: the process that comes next, or another one, has room
            return Defer(0.0, job)
        except PipelineError as error:
            return Fail(error, msgspec.structs.replace(facts, prompt_ms=_since(began)))

    async def _resolve(self, delivery: Delivery, group: Group | None, facts: Facts, began: float) -> Forward:
        job = delivery.job
        body = decode_body(delivery.body)
        if failpoints.ARMED:
            await failpoints.reach("resolve.before_hook")
        result = None
        if job.prompt is not None:
            variables = group.prompt_variables if group else None
            result = await consult(self._managers, self._isolation, hook_request(job, job.prompt, body, variables))
            facts = msgspec.structs.replace(facts, prompt="changed" if result.changed else "unchanged")
        name = self._model(job, group, result)
        merged = merge(body, result)
        content = OPERATIONS[job.operation].content
        if OPERATIONS[job.operation].required and is_empty(merged.get(content)) and is_empty(body.get(content)):
            raise InvalidRequest(f"`{content}` is empty, and the prompt added nothing; send it", param=content)
        facts = msgspec.structs.replace(facts, prompt_ms=_since(began))
        if failpoints.ARMED:
            await failpoints.reach("resolve.after_resolve")
        # The name is ours now: a dispatch worker that does not know it is to compare configurations with us.
        named = msgspec.structs.replace(job, model=name, config=self._digest, facts=facts)
        return Forward(named, encode_json(merged))

    def _model(self, job: Job, group: Group | None, result: HookResult | None) -> str:
        """Return the name of the group that serves. Raises when there is none, or the key may not use it."""
        asked = job.model
        if result is not None and result.model != job.model:
            asked = result.model
            group = self._chosen(job, result.model)
        elif not job.model:
            raise InvalidRequest("no model: neither the request nor the prompt names one; send `model`", param="model")
        elif group is None:
            raise self._unknown(job)
        # An alias may be what the key is allowed; a provider's model name that stands for a group is not.
        known_as = asked if self._catalog.group(asked) is not None else group.name
        if not allows(job.allowed_models, group.name) and not allows(job.allowed_models, known_as):
            raise NotAllowed(f"this key may not use the model {group.name!r}; ask for one it may use", param="model")
        return group.name

    def _chosen(self, job: Job, model: str) -> Group:
        """Return the group a manager means: a name clients use, else the one group with that provider model."""
        group = self._catalog.group(model) or self._catalog.group_serving(model)
        if group is None:
            raise PromptModelUnknown(
                f"the prompt manager chose the model {model[:200]!r}, which no one model group serves; "
                f"add it to `model_list`, or return a name that is there{self._similar(job, model)}"
            )
        return group

    def _unknown(self, job: Job) -> PipelineError:
        if job.config != self._digest:
            return ConfigMismatch(
                f"this worker's configuration has no model {job.model[:200]!r}, the gateway's has; restart the worker"
            )
        return ModelNotFound(
            f"there is no model {job.model[:200]!r}{self._similar(job, job.model)}; ask for one in `model_list`",
            param="model",
        )

    def _similar(self, job: Job, model: str) -> str:
        """Return the names like `model` that the key may use; the others are not its business."""
        close = self._catalog.closest(model, [n for n in self._catalog.names() if allows(job.allowed_models, n)])
        return f" (there is {', '.join(close)})" if close else ""


def _since(began: float) -> float:
    """Return milliseconds with no more digits than mean something, for they are logged."""
    return round((perf_counter() - began) * 1000, 3)


@asynccontextmanager
async def _open(context: StageContext) -> AsyncIterator[Stage]:
    prompts = context.settings.prompts
    managers = load_managers(context.settings)
    async with open_isolation(prompts.slots, prompts.timeout, context.restart) as isolation:
        yield ResolveStage(managers, isolation, context.catalog, context.settings.digest)


def _poisoned(job_id: str) -> PipelineError:
    return PromptWorkerLost(
        f"the prompt manager took its process down every time job {job_id} was delivered",
        hint="look for a crash in native code, os._exit or memory use in the prompt manager",
    )


stage: Final = StageSpec(
    name="resolve",
    max_deliveries=3,
    slots=lambda settings: settings.prompts.slots,
    open=_open,
    poisoned=_poisoned,
)
