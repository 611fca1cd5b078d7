"""Prompt managers written to a directory, and the resolve stage opened over them."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
from fakes.configs import deployment
from fakes.deliveries import FakeDelivery, make_job

from pipeline.catalog import Catalog
from pipeline.job import PromptRef
from pipeline.settings import Callback, PromptSettings, Settings
from pipeline.stage import Fail, Forward, Outcome, Stage, StageContext
from workers.stages.resolve import stage

IMPORTS = """\
import asyncio, functools, threading, time
from litellm.integrations.custom_prompt_management import CustomPromptManagement
"""

SEED = """\
from typing import List, Tuple, Optional
from litellm.integrations.custom_prompt_management import CustomPromptManagement
from litellm.types.llms.openai import AllMessageValues
from litellm.types.utils import StandardCallbackDynamicParams

class MyCustomPromptManagement(CustomPromptManagement):
    def get_chat_completion_prompt(
        self,
        model: str,
        messages: List[AllMessageValues],
        non_default_params: dict,
        prompt_id: str,
        prompt_variables: Optional[dict],
        dynamic_callback_params: StandardCallbackDynamicParams,
    ) -> Tuple[str, List[AllMessageValues], dict]:
        if prompt_id == "1234":
            new_messages = [
                {"role": "system", "content": "Be a good Bot!"},
            ] + messages
            return model, new_messages, non_default_params
        return model, messages, non_default_params

prompt_management = MyCustomPromptManagement()
"""


def sync_hook(code: str) -> str:
    """Return a file whose manager's synchronous hook takes everything, as `kw` and by name, and runs `code`."""
    return _hook("def get_chat_completion_prompt", code)


def async_hook(code: str) -> str:
    """Return a file whose manager's asynchronous hook runs `code`."""
    return _hook("async def async_get_chat_completion_prompt", code)


def _hook(head: str, code: str) -> str:
    lines = f"""\
class M(CustomPromptManagement):
    {head}(self, model, messages, non_default_params, prompt_id, **kw):
        self.seen = dict(kw, model=model, messages=messages, non_default_params=non_default_params, prompt_id=prompt_id)
"""
    return IMPORTS + lines + textwrap.indent(textwrap.dedent(code).strip(), " " * 8) + "\nmanager = M()\n"


def configured(directory: Path, *sources: str, prompts: PromptSettings | None = None, **fields: Any) -> Settings:
    """Write each source as `hooks.py`, `hooks1.py` …; return settings whose callbacks are their `manager`s."""
    callbacks = []
    for index, source in enumerate(sources):
        name = f"hooks{index or ''}"
        (directory / f"{name}.py").write_text(source)
        callbacks.append(Callback(path=f"{name}.manager", file="config.yaml", line=7 + index))
    fields.setdefault("deployments", (deployment(),))
    fields.setdefault("callbacks", tuple(callbacks))
    return Settings(directory=str(directory), prompts=prompts or PromptSettings(), **fields)


def user_module(name: str = "hooks") -> ModuleType:
    """Return the user's file as it was loaded."""
    return sys.modules[f"_promptmill_user.{name}"]


@asynccontextmanager
async def resolve_stage(settings: Settings, restart: Callable[[str], None] = lambda _: None) -> AsyncIterator[Stage]:
    """Open the resolve stage; afterwards the import system is as before."""
    path = list(sys.path)
    context = StageContext(settings=settings, catalog=Catalog(settings), consumer="c", restart=restart)
    try:
        async with stage.open(context) as opened:
            yield opened
    finally:
        sys.path[:] = path


def delivery(body: dict[str, Any] | bytes | None = None, prompt_id: str | None = "1234", **job: Any) -> FakeDelivery:
    """Return the delivery of a job that references a prompt; `body` gets a user message unless it is given whole."""
    if not isinstance(body, bytes):
        given = {"messages": [{"role": "user", "content": "hi"}], **(body or {})}
        body = msgspec.json.encode({name: value for name, value in given.items() if value is not ...})
    if prompt_id is not None:
        job.setdefault("prompt", PromptRef(id=prompt_id))
    return FakeDelivery(make_job(**job), body)


async def resolve(settings: Settings, *args: Any, **job: Any) -> Outcome:
    """Open the stage, handle one delivery, and return its outcome."""
    async with resolve_stage(settings) as opened:
        return await opened.handle(delivery(*args, **job))


def forwarded(outcome: Outcome) -> dict[str, Any]:
    """Return the body that goes on."""
    assert isinstance(outcome, Forward), outcome
    body: dict[str, Any] = msgspec.json.decode(outcome.body)
    return body


def failed(outcome: Outcome, kind: type[Exception]) -> str:
    """Return the message of a failure of exactly this kind."""
    assert isinstance(outcome, Fail), outcome
    assert type(outcome.error) is kind, outcome.error
    return outcome.error.message
