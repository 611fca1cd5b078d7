"""What a hook gets: the arguments of the contract, and nothing shared with the gateway."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes.configs import deployment
from fakes.prompts import (
    IMPORTS,
    async_hook,
    configured,
    delivery,
    failed,
    forwarded,
    resolve,
    resolve_stage,
    sync_hook,
)
from fakes.prompts import user_module as user

from pipeline.body_fields import CONTROL_FIELDS, CREDENTIAL_FIELDS
from pipeline.errors import InvalidRequest
from pipeline.job import PromptRef
from pipeline.stage import Forward

pytestmark = pytest.mark.anyio

UNCHANGED = "return model, messages, non_default_params"
HEADERS = {"user-agent": "sdk", "x-team": "blue"}
VOUCHED = {
    "user_api_key_alias": "team",
    "requester_metadata": {},
    "headers": HEADERS,
    "endpoint": "/v1/chat/completions",
}


@pytest.mark.parametrize("hook", [sync_hook, async_hook])
async def test_a_hook_that_takes_everything_gets_the_whole_contract(tmp_path: Path, hook: Any) -> None:
    body = {"tools": [{"type": "function"}], "temperature": 0.5, "user": "u", "stream": True, "model": "gpt-4"}
    controls = dict.fromkeys(CONTROL_FIELDS | CREDENTIAL_FIELDS, 1) | {"litellm_trace_id": "t", "prompt_id": "1234"}
    ref = PromptRef(id="1234", version=3, label="prod")
    outcome = await resolve(
        configured(tmp_path, hook(UNCHANGED)),
        {**body, **controls, "prompt_variables": {"a": [1]}},
        prompt=ref,
        tenant="team",
        headers=HEADERS,
        traceparent="00-0123456789abcdef0123456789abcdef-0123456789abcdef-01",
        id="0-job",
    )
    seen = user().manager.seen
    logging_obj = seen.pop("litellm_logging_obj")
    assert seen == {
        "model": "gpt-4",
        "messages": [{"role": "user", "content": "hi"}],
        "non_default_params": {
            "tools": [{"type": "function"}],
            "temperature": 0.5,
            "user": "u",
            "metadata": VOUCHED,
        },
        "prompt_id": "1234",
        "prompt_variables": {"a": [1]},
        "prompt_label": "prod",
        "prompt_version": 3,
        "prompt_spec": None,
        "dynamic_callback_params": {},
        "tools": [{"type": "function"}],
        "ignore_prompt_manager_model": False,
        "ignore_prompt_manager_optional_params": False,
    }
    assert logging_obj.model_call_details == {}
    assert logging_obj.litellm_call_id == "0-job"
    assert logging_obj.litellm_trace_id == "0123456789abcdef0123456789abcdef"
    assert "metadata" not in forwarded(outcome)


async def test_without_tools_label_version_or_trace_a_hook_gets_none_and_the_jobs_id(tmp_path: Path) -> None:
    await resolve(configured(tmp_path, sync_hook(UNCHANGED)), id="0-job")
    seen = user().manager.seen
    assert (seen["tools"], seen["prompt_label"], seen["prompt_version"]) == (None, None, None)
    assert seen["litellm_logging_obj"].litellm_trace_id == "0-job"


SIX = "model, messages, non_default_params, prompt_id, prompt_variables, dynamic_callback_params"
SIGNATURES = {
    6: SIX,
    8: f"{SIX}, prompt_label=None, prompt_version=None",
    9: f"{SIX}, prompt_spec, prompt_label, prompt_version",
    11: f"{SIX}, prompt_spec=None, prompt_label=None, prompt_version=None, ignore_prompt_manager_model=False, "
    "ignore_prompt_manager_optional_params=False",
}


@pytest.mark.parametrize("count", SIGNATURES)
@pytest.mark.parametrize("head", ["def get_chat_completion_prompt", "async def async_get_chat_completion_prompt"])
async def test_a_hook_gets_exactly_the_parameters_its_signature_takes(tmp_path: Path, count: int, head: str) -> None:
    source = f"""
class M(CustomPromptManagement):
    def __init__(self): pass
    {head}(self, {SIGNATURES[count]}):
        return model, messages + [dict(role="user", content=prompt_id)], None
manager = M()
"""
    body = forwarded(await resolve(configured(tmp_path, IMPORTS + source)))
    assert body["messages"][1:] == [{"role": "user", "content": "1234"}]


FORMS = {
    "a static method": """
        class M(CustomPromptManagement):
            @staticmethod
            def get_chat_completion_prompt(model, messages, **rest):
                return model, messages + [MARK], None
        manager = M()""",
    "a decorated function": """
        def twice(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                return function(*args, **kwargs)
            return wrapper
        class M(CustomPromptManagement):
            @twice
            def get_chat_completion_prompt(self, model, messages, prompt_id):
                return model, messages + [MARK], None
        manager = M()""",
    "a partial object": """
        def render(prefix, model, messages, prompt_id):
            return model, messages + [MARK], None
        class M(CustomPromptManagement):
            get_chat_completion_prompt = staticmethod(functools.partial(render, "x"))
        manager = M()""",
    "a function set on the instance": """
        manager = CustomPromptManagement()
        manager.get_chat_completion_prompt = lambda model, messages, **_: (model, messages + [MARK], {})""",
    "an object of no base class": """
        class M:
            async def async_get_chat_completion_prompt(self, *, messages, model, extra=1):
                return model, messages + [MARK], None
        manager = M()""",
    "an async function under the synchronous name": """
        class M(CustomPromptManagement):
            async def get_chat_completion_prompt(self, model, messages, *args):
                await asyncio.sleep(0)
                return model, messages + [MARK], None
        manager = M()""",
    "a plain function that returns an awaitable, under the asynchronous name": """
        class M(CustomPromptManagement):
            def async_get_chat_completion_prompt(self, model, messages):
                async def later():
                    return model, messages + [MARK], None
                return later()
        manager = M()""",
    "a plain function under the asynchronous name": """
        class M(CustomPromptManagement):
            def async_get_chat_completion_prompt(self, model, messages):
                return model, messages + [MARK], None
        manager = M()""",
    "positional-only parameters with defaults": """
        class M(CustomPromptManagement):
            def get_chat_completion_prompt(self, first=1, /, *, model, messages):
                return model, messages + [MARK], None
        manager = M()""",
}


@pytest.mark.parametrize("form", FORMS)
async def test_a_hook_may_be(tmp_path: Path, form: str) -> None:
    source = IMPORTS + "MARK = dict(role='user', content='mark')\n" + textwrap.dedent(FORMS[form]) + "\n"
    body = forwarded(await resolve(configured(tmp_path, source)))
    assert [m["content"] for m in body["messages"]] == ["hi", "mark"]


@pytest.mark.parametrize(
    "parameters", ["prompt_id, dynamic_callback_params", "prompt_id, prompt_spec, dynamic_callback_params"]
)
async def test_should_run_takes_two_or_three_parameters(tmp_path: Path, parameters: str) -> None:
    source = sync_hook("return model, messages * 2, None").replace(
        "\nmanager =",
        f"\n    def should_run_prompt_management(self, {parameters}):\n        return prompt_id == '1234'\nmanager =",
    )
    assert len(forwarded(await resolve(configured(tmp_path, source)))["messages"]) == 2


async def test_what_a_hook_does_to_its_arguments_in_place_changes_nothing(tmp_path: Path) -> None:
    source = sync_hook("""
        messages.append({"role": "user", "content": "mutated"})
        messages[0]["content"] = "mutated"
        non_default_params["metadata"]["headers"]["x-team"] = "red"
        non_default_params["tools"].clear()
        kw["tools"].clear()
        non_default_params.clear()
        return model, [{"role": "user", "content": "hi"}], {}
    """)
    headers = dict(HEADERS)
    outcome = await resolve(configured(tmp_path, source), {"tools": [1], "temperature": 1}, headers=headers)
    assert isinstance(outcome, Forward)
    assert outcome.job.facts.prompt == "unchanged"
    body = forwarded(outcome)
    assert (body["messages"], body["tools"], body["temperature"]) == ([{"role": "user", "content": "hi"}], [1], 1)
    assert headers == HEADERS


async def test_variables_of_the_group_are_private_too(tmp_path: Path) -> None:
    group = deployment(prompt_id="1234", prompt_variables={"list": []})
    settings = configured(
        tmp_path, sync_hook("kw['prompt_variables']['list'].append(1)\n" + UNCHANGED), deployments=(group,)
    )
    async with resolve_stage(settings) as stage:
        for _ in range(2):
            await stage.handle(delivery())
            assert user().manager.seen["prompt_variables"] == {"list": [1]}


async def test_what_the_gateway_vouches_for_overwrites_a_clients_spoof(tmp_path: Path) -> None:
    spoof = {"user_api_key_alias": "admin", "headers": {"x": "y"}, "endpoint": "/", "trace": "t"}
    settings = configured(tmp_path, sync_hook(UNCHANGED))
    outcome = await resolve(settings, {"metadata": spoof}, tenant="team", headers=HEADERS)
    seen = user().manager.seen["non_default_params"]["metadata"]
    assert seen == {**VOUCHED, "trace": "t", "requester_metadata": spoof}
    assert forwarded(outcome)["metadata"] == spoof
    assert isinstance(outcome, Forward)
    assert outcome.job.facts.prompt == "unchanged"


async def test_metadata_that_is_no_object_is_left_to_the_provider(tmp_path: Path) -> None:
    outcome = await resolve(configured(tmp_path, sync_hook(UNCHANGED)), {"metadata": "text"})
    assert user().manager.seen["non_default_params"]["metadata"]["requester_metadata"] == {}
    assert forwarded(outcome)["metadata"] == "text"


@pytest.mark.parametrize(
    ("change", "sent", "expected"),
    [
        ("p['metadata']['mine'] = 1", {"a": 1}, {"a": 1, "mine": 1}),
        ("p['metadata']['mine'] = 1", ..., {"mine": 1}),
        ("p['metadata'] = {'only': 1}", {"a": 1}, {"only": 1}),
        ("del p['metadata']['a']", {"a": 1}, {}),
        ("p['metadata'].pop('headers')", ..., ...),
        ("p['metadata'] = None", {"a": 1}, ...),
        ("p['metadata'] = 'text'", {"a": 1}, "text"),
        ("del p['metadata']", {"a": 1}, {"a": 1}),
    ],
)
async def test_metadata_the_manager_changed_goes_on_without_what_was_vouched_for(
    tmp_path: Path, change: str, sent: Any, expected: Any
) -> None:
    source = sync_hook(f"p = non_default_params\n{change}\nreturn model, messages, p")
    body = forwarded(await resolve(configured(tmp_path, source), {"metadata": sent}, tenant="team"))
    assert body.get("metadata", ...) == expected


async def test_a_value_below_the_top_level_that_does_not_decode_is_the_clients_mistake(tmp_path: Path) -> None:
    body = b'{"messages":[{"role":"user","content":"hi"}],"x":"\xff"}'
    with pytest.raises(UnicodeDecodeError):
        msgspec.json.decode(body)
    failed(await resolve(configured(tmp_path, sync_hook(UNCHANGED)), body), InvalidRequest)
