"""Prompt managers that raise, hang, block or crash: their own requests fail as documented, everybody else's do not."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.callers import Response, calling, drained
from fakes.gateways import Gateway, promptmill, start_gateway
from fakes.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.anyio]

PROMPT_TIMEOUT = 3
MANAGERS = """
import asyncio, os, time
from litellm.integrations.custom_prompt_management import CustomPromptManagement

def note(prompt_id):
    with open(__file__ + ".calls", "a") as calls:
        calls.write(prompt_id + "\\n")

class Sync(CustomPromptManagement):
    def should_run_prompt_management(self, prompt_id, dynamic_callback_params):
        return not prompt_id.startswith("async ")

    def get_chat_completion_prompt(self, model, messages, non_default_params, prompt_id, prompt_variables):
        note(prompt_id)
        match prompt_id:
            case "two seconds":
                time.sleep(2)
            case "exit":
                os._exit(1)
            case "raise":
                raise KeyError("the words of the hook")
            case "rubbish":
                return "rubbish"
            case "block":
                time.sleep(60)
        return model, [{"role": "system", "content": "sync"}, *messages], non_default_params

class Async(CustomPromptManagement):
    async def async_get_chat_completion_prompt(self, model, messages, non_default_params, prompt_id, prompt_variables):
        note(prompt_id)
        match prompt_id:
            case "async sleep":
                await asyncio.sleep(60)
            case "async block":
                time.sleep(60)
            case "async raise":
                raise ValueError("the words of the hook")
        return model, [{"role": "system", "content": "async"}, *messages], non_default_params

of_threads, of_loops = Sync(), Async()
"""
CONFIG = f"""
model_list:
  - model_name: gpt-4
    litellm_params: {{model: echo/echo}}
litellm_settings: {{callbacks: [mine.of_threads, mine.of_loops]}}
promptmill_settings: {{prompt_timeout: {PROMPT_TIMEOUT}, lease: 2}}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("troubled")


@pytest.fixture(scope="module")
def gateway(directory: Path) -> Iterator[Gateway]:
    (directory / "mine.py").write_text(MANAGERS)
    with start_gateway(directory, "--detailed_debug", config=CONFIG) as running:
        yield running
        assert running.stop(signal.SIGTERM) == 0
        assert "the words of the hook" not in running.log
        assert "Traceback" not in running.log


@pytest.fixture(autouse=True)
def no_calls_so_far(directory: Path) -> None:
    (directory / "mine.py.calls").write_text("")


def calls(directory: Path) -> Counter[str]:
    return Counter((directory / "mine.py.calls").read_text().splitlines())


def check_error(answer: Response, status: int, code: str, *words: str) -> dict[str, Any]:
    error = answer.error
    assert (answer.status, error["code"], error["stage"]) == (status, code, "resolve"), error
    assert error["type"] == "prompt_manager_error"
    assert answer.headers["x-should-retry"] == "false"
    assert all(word in error["message"] for word in words), error["message"]
    assert "Traceback" not in answer.content.decode()
    return error


@pytest.mark.parametrize("prompt_id", ["raise", "async raise"])
async def test_a_hook_that_raises_is_called_once_and_named_with_its_file_and_line(
    gateway: Gateway, directory: Path, prompt_id: str
) -> None:
    async with calling(gateway.url) as caller:
        answer = await caller.chat(prompt_id=prompt_id)
    line = 1 + MANAGERS.splitlines().index(
        next(line for line in MANAGERS.splitlines() if "raise " in line and ("Value" in line) == ("async" in prompt_id))
    )
    check_error(answer, 502, "prompt_manager_error", "mine.", f"mine.py:{line}", "Error", "the words of the hook")
    assert calls(directory) == {prompt_id: 1}


async def test_a_hook_that_returns_rubbish_is_told_what_it_returned(gateway: Gateway) -> None:
    async with calling(gateway.url) as caller:
        check_error(await caller.chat(prompt_id="rubbish"), 502, "prompt_manager_error", "mine.of_threads", "str")


async def test_hooks_that_hang_or_block_are_answered_for_and_their_neighbours_served_meanwhile(
    gateway: Gateway, directory: Path
) -> None:
    stuck = ["block", "async sleep", "async block"]
    began = time.monotonic()
    async with calling(gateway.url) as caller, anyio.create_task_group() as tasks:
        answers: dict[str, Response] = {}

        async def ask(prompt_id: str) -> None:
            answers[prompt_id] = await caller.chat(prompt_id=prompt_id)

        for prompt_id in stuck:
            tasks.start_soon(ask, prompt_id)
        await wait_until(lambda: set(calls(directory)) == set(stuck))
        neighbours = await caller.gather(*({"prompt_id": f"{kind}fine"} for kind in ("", "async ") for _ in range(10)))
        assert all(answer.at - began < PROMPT_TIMEOUT for answer in neighbours)
        assert not answers
    assert [answer.text for answer in neighbours] == ["system: sync\nuser: hi"] * 10 + ["system: async\nuser: hi"] * 10
    for prompt_id in stuck:
        check_error(answers[prompt_id], 504, "prompt_manager_timeout", "mine.py:", f"after {PROMPT_TIMEOUT} s")
        assert answers[prompt_id].at - began < PROMPT_TIMEOUT + 2
    # What shared a loop with the one that blocked it was begun anew on another.
    assert {prompt_id: calls(directory)[prompt_id] for prompt_id in ("block", "async block")} == {
        "block": 1,
        "async block": 1,
    }


async def test_a_hook_that_ends_its_process_harms_none_of_its_neighbours(gateway: Gateway, directory: Path) -> None:
    async with calling(gateway.url, timeout=90) as caller:
        requests = [{"text": str(n), "prompt_id": "two seconds"} for n in range(63)]
        requests.insert(31, {"text": "poison", "prompt_id": "exit"})
        answers = await caller.gather(*requests)
    poisoned = answers.pop(31)
    error = check_error(poisoned, 502, "prompt_manager_crashed")
    assert error["request_id"] in error["message"]
    assert [answer.text for answer in answers] == [f"system: sync\nuser: {n}" for n in range(63)]
    assert calls(directory)["exit"] == 3
    listed = promptmill("dead", "list", "--json", cwd=directory)
    letters = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [(letter["stage"], letter["reason"]) for letter in letters] == [("resolve", "poison")]
    shown = json.loads(promptmill("dead", "show", letters[0]["id"], "--json", cwd=directory).stdout)
    assert "user: poison" not in json.dumps(shown)
    assert '"poison"' not in json.dumps(shown).replace('"reason": "poison"', "")
    await wait_until(lambda: drained(directory))
