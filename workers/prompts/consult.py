"""Asking the managers, in order, for one request: who serves it, and what it becomes."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from typing import Any, Final

from pipeline import logs, metrics
from pipeline.errors import PipelineError, PromptManagerError, PromptNotFound, PromptTimeout
from pipeline.redaction import redact, secrets_in
from workers.prompts import places
from workers.prompts.calls import Overran
from workers.prompts.isolation import Isolation
from workers.prompts.loading import Managers
from workers.prompts.managers import Manager
from workers.prompts.request import HookRequest
from workers.prompts.results import HookResult, read_result

_log = logs.logger("prompts")

_LONGEST: Final = 300
"""Characters of an exception's words that are told."""

_LOOKED_AT: Final = 16_384
"""Characters of them in which secrets are looked for: a whole one should fit."""


class _Leg:
    """Neighbouring managers asked about one request in one hand-over; remembers who was asked last."""

    __slots__ = ("asked", "managers", "request")

    def __init__(self, managers: tuple[Manager, ...], request: HookRequest) -> None:
        self.managers = managers
        self.request = request
        self.asked = managers[0]

    def run(self) -> HookResult | None:
        """Return the first willing manager's result, None when nobody serves the prompt. Runs on a thread."""
        for manager in self.managers:
            self.asked = manager
            try:
                if manager.wants(self.request):
                    return read_result(self.request, _settled(manager.hook(**manager.arguments(self.request))))
            except BaseException as error:  # noqa: BLE001 - user code, SystemExit included, must not end the process
                raise _failure(manager, error) from None
        return None

    async def run_async(self) -> HookResult | None:
        """Return what `run` does, of managers with asynchronous hooks. Runs on the user's loop."""
        for manager in self.managers:
            self.asked = manager
            try:
                if manager.wants(self.request):
                    returned = manager.hook(**manager.arguments(self.request))
                    return read_result(self.request, await returned if inspect.isawaitable(returned) else returned)
            except BaseException as error:  # noqa: BLE001 - user code, SystemExit included, must not end the process
                raise _failure(manager, error) from None
        return None


async def consult(managers: Managers, isolation: Isolation, request: HookRequest) -> HookResult:
    """
    Return what the first manager that serves the prompt makes of the request.

    Raises PromptNotFound, PromptTimeout, PromptManagerError, and InvalidRequest for a body that does not decode.
    """
    for managers_of_leg in managers.legs:
        leg = _Leg(managers_of_leg, request)
        try:
            began = time.monotonic()
            call = isolation.run_async(leg.run_async) if leg.asked.is_async else isolation.run(leg.run)
            result: HookResult | None = await call
            metrics.HOOK_SECONDS[leg.asked.path, "ok"].observe(time.monotonic() - began)
            if result is not None:
                return result
        except PromptManagerError:
            metrics.HOOK_SECONDS[leg.asked.path, "failed"].observe(time.monotonic() - began)
            raise
        except Overran as overrun:
            metrics.HOOK_SECONDS[leg.asked.path, "timeout"].observe(time.monotonic() - began)
            raise _timeout(leg.asked, overrun, isolation.timeout) from None
    raise _nobody(managers)


def _settled(returned: Any) -> Any:
    """Refuse a coroutine from a synchronous hook, closing it."""
    if inspect.iscoroutine(returned):
        returned.close()
        raise PromptManagerError("its synchronous hook returned a coroutine; write the hook as `async def`")
    return returned


def _failure(manager: Manager, error: BaseException) -> PipelineError:
    """Return the error a client sees: the manager, the user's file and line, no traceback."""
    if isinstance(error, PromptManagerError):
        text = error.message
    elif isinstance(error, PipelineError):
        return error
    else:
        text = f"raised {type(error).__name__}{_words(error, manager.secrets)}"
    place = places.in_directory(places.of_error(error), manager.directory)
    if isinstance(error, asyncio.CancelledError):
        text = "was cancelled by its own code"
    where = place or _where(manager)
    # Not its words: they may quote a prompt, and the client gets them.
    _log.warning("prompt manager failed", manager=manager.path, place=where, error=type(error).__name__)
    return PromptManagerError(f"prompt manager {manager.path} ({where}): {text}")


def _words(error: BaseException, secrets: tuple[str, ...]) -> str:
    """Return the first line of an exception's own words, cut, and without what this process must not tell."""
    try:
        # A lone surrogate, which no reply can carry, is shown as its escape.
        lines = str(error).encode(errors="backslashreplace").decode().strip().splitlines()
    except BaseException:  # noqa: BLE001 - `__str__` is user code as well, and here it runs on the transport's loop
        return ""
    if not lines:
        return ""
    return ": " + redact(lines[0][:_LOOKED_AT], (*secrets, *secrets_in(os.environ)))[:_LONGEST]


def _timeout(manager: Manager, overrun: Overran, limit: float) -> PromptTimeout:
    place = places.in_directory(overrun.stack, manager.directory)
    if not overrun.stack:
        fact = "did not begin, because other hooks have not returned,"
    else:
        fact = f"has not returned and stands at {place or _where(manager)}"
    remedy = "make it faster, or raise `prompt_timeout`"
    return PromptTimeout(f"prompt manager {manager.path} {fact} after {limit:g} s; {remedy}")


def _where(manager: Manager) -> str:
    return f"{os.path.basename(manager.file)}:{manager.line}" if manager.file else manager.kind


def _nobody(managers: Managers) -> PromptNotFound:
    if not managers.all:
        return PromptNotFound(
            "no prompt manager is configured; list one under `litellm_settings.callbacks`, or leave the prompt id out",
            param="prompt_id",
        )
    asked = ", ".join(manager.path for manager in managers.all)
    return PromptNotFound(f"no prompt manager serves this prompt id (asked: {asked}); check the id", param="prompt_id")
