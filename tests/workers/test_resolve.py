"""The resolve stage over managers loaded from files: what a request becomes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes.configs import deployment
from fakes.prompts import (
    SEED,
    async_hook,
    configured,
    delivery,
    failed,
    forwarded,
    resolve,
    resolve_stage,
    sync_hook,
    user_module,
)

from pipeline.errors import (
    ConfigMismatch,
    InvalidRequest,
    ModelNotFound,
    NotAllowed,
    PromptManagerError,
    PromptModelUnknown,
    PromptNotFound,
    PromptWorkerLost,
)
from pipeline.job import PromptRef
from pipeline.settings import Callback, RouterSettings, Settings
from pipeline.stage import Defer, Fail, Forward
from workers.stages.resolve import stage

pytestmark = pytest.mark.anyio

HI = {"role": "user", "content": "hi"}
UNCHANGED = "return model, messages, non_default_params"


def seed(tmp_path: Path) -> Settings:
    (tmp_path / "custom_prompt.py").write_text(SEED)
    return configured(tmp_path, callbacks=(Callback(path="custom_prompt.prompt_management"),))


async def test_the_seed_example_adds_its_system_message_once(tmp_path: Path) -> None:
    outcome = await resolve(seed(tmp_path), {"model": "gpt-4", "prompt_id": "1234"})
    assert forwarded(outcome) == {
        "model": "gpt-4",
        "messages": [{"role": "system", "content": "Be a good Bot!"}, HI],
    }
    assert isinstance(outcome, Forward)
    assert (outcome.job.model, outcome.job.facts.prompt, outcome.job.facts.prompt_id) == ("gpt-4", "changed", "1234")
    assert 0 < outcome.job.facts.prompt_ms == round(outcome.job.facts.prompt_ms, 3)
    assert outcome.job.facts.queue_ms == 1.5


async def test_the_seed_example_answers_an_unknown_id_unchanged(tmp_path: Path) -> None:
    outcome = await resolve(seed(tmp_path), b'{"messages": [ {"role": "user", "content": "h\\u0069"} ]}', "other")
    assert isinstance(outcome, Forward)
    assert outcome.job.facts.prompt == "unchanged"
    assert outcome.body == b'{"messages":[ {"role": "user", "content": "h\\u0069"} ]}'


async def test_without_messages_the_provider_gets_the_system_message_alone(tmp_path: Path) -> None:
    for messages in (..., None, []):
        body = forwarded(await resolve(seed(tmp_path), {"messages": messages}))
        assert body["messages"] == [{"role": "system", "content": "Be a good Bot!"}]


async def test_a_job_without_a_reference_calls_no_hook(tmp_path: Path) -> None:
    outcome = await resolve(configured(tmp_path, sync_hook("raise RuntimeError")), {"temperature": 1}, None)
    assert forwarded(outcome) == {"messages": [HI], "temperature": 1}


async def test_the_model_group_is_what_goes_on_for_an_alias(tmp_path: Path) -> None:
    settings = configured(tmp_path, sync_hook(UNCHANGED), router=RouterSettings(aliases={"fast": "gpt-4"}))
    outcome = await resolve(settings, model="fast", allowed_models=("fast",))
    assert isinstance(outcome, Forward)
    assert outcome.job.model == "gpt-4"
    assert user_module().manager.seen["model"] == "fast"


async def test_a_model_the_manager_chose_is_found_by_name_alias_wildcard_and_provider_model(tmp_path: Path) -> None:
    many = (
        deployment(),
        deployment("claude", "anthropic/claude-x"),
        deployment("mistral/*", "mistral/*"),
    )
    source = sync_hook("return prompt_id, messages, None")
    settings = configured(tmp_path, source, deployments=many, router=RouterSettings(aliases={"smart": "claude"}))
    async with resolve_stage(settings) as opened:
        for chosen, group in {
            "claude": "claude",
            "smart": "claude",
            "mistral/large": "mistral/large",
            "anthropic/claude-x": "claude",
        }.items():
            outcome = await opened.handle(delivery({}, chosen))
            assert isinstance(outcome, Forward), outcome
            assert outcome.job.model == group
            assert outcome.job.facts.prompt == "changed"


async def test_a_model_that_no_group_or_several_serve_is_unknown(tmp_path: Path) -> None:
    twice = (deployment("a", "openai/x"), deployment("b", "openai/x"))
    settings = configured(tmp_path, sync_hook("return prompt_id, messages, None"), deployments=twice)
    async with resolve_stage(settings) as opened:
        for chosen in ("openai/x", "nobody", ""):
            outcome = await opened.handle(delivery({}, chosen or "", model="a", prompt=PromptRef(id=chosen)))
            assert "model_list" in failed(outcome, PromptModelUnknown)
            assert isinstance(outcome, Fail)
            assert (outcome.error.status, outcome.error.should_retry) == (502, False)
            assert outcome.facts.prompt == ""
            assert outcome.facts.prompt_ms > 0


async def test_the_manager_may_choose_the_model_when_the_client_names_none_or_an_unknown_one(tmp_path: Path) -> None:
    settings = configured(tmp_path, sync_hook("return 'gpt-4', messages, None"))
    for model in ("", "gemini-1.5-pro"):
        outcome = await resolve(settings, model=model)
        assert isinstance(outcome, Forward)
        assert outcome.job.model == "gpt-4"
    assert user_module().manager.seen["model"] == "gemini-1.5-pro"


async def test_an_unknown_model_that_stays_is_a_404_with_the_closest_names(tmp_path: Path) -> None:
    message = failed(await resolve(seed(tmp_path), model="gemini-1.5-pro"), ModelNotFound)
    assert "gemini-1.5-pro" in message
    assert "gpt-4" in message
    limited = await resolve(seed(tmp_path), model="gpt-5", allowed_models=("gpt-5",))
    assert "gpt-4" not in failed(limited, ModelNotFound)


async def test_a_model_that_nobody_names_is_the_clients_mistake(tmp_path: Path) -> None:
    outcome = await resolve(seed(tmp_path), model="")
    failed(outcome, InvalidRequest)
    assert isinstance(outcome, Fail)
    assert outcome.error.param == "model"
    assert outcome.facts.prompt_id == "1234"


async def test_the_keys_allowed_models_are_checked_after_the_hook(tmp_path: Path) -> None:
    many = (deployment(), deployment("big", "openai/big"))
    settings = configured(tmp_path, sync_hook("return prompt_id, messages, None"), deployments=many)
    async with resolve_stage(settings) as opened:
        for chosen in ("big", "openai/big"):
            outcome = await opened.handle(delivery({}, chosen, allowed_models=("gpt-4", "openai/*")))
            assert "big" in failed(outcome, NotAllowed)
        outcome = await opened.handle(delivery({}, "big", allowed_models=("b*",)))
        assert isinstance(outcome, Forward)
        outcome = await opened.handle(delivery({}, "gpt-4", allowed_models=("big",)))
        failed(outcome, NotAllowed)


async def test_prompt_fields_are_taken_off_by_exact_name(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "prompt_id": "1234",
        "prompt_variables": {"a": 1},
        "prompt_label": "x",
        "prompt_version": 2,
        "prompt_environment": "e",
        "prompt": {"id": "1234"},
    }
    kept = {"prompt_cache_key": "k", "prompt_idx": 1, "stream": True, "unknown": [1, {"a": None}]}
    outcome = await resolve(configured(tmp_path, sync_hook(UNCHANGED)), {**fields, **kept})
    assert forwarded(outcome) == {"messages": [HI], **kept}
    assert forwarded(await resolve(seed(tmp_path), {"prompt": "text"}))["prompt"] == "text"


async def test_the_variables_come_from_the_body_then_the_object_then_the_group(tmp_path: Path) -> None:
    group = deployment(prompt_id="1234", prompt_variables={"from": "group"})
    settings = configured(tmp_path, sync_hook(UNCHANGED), deployments=(group,))
    both = {"prompt": {"id": "1", "variables": {"from": "object"}}}
    async with resolve_stage(settings) as opened:
        for body, expected in (
            ({"prompt_variables": {"from": "body"}, **both}, "body"),
            (both, "object"),
            ({"prompt_variables": None, **both}, "object"),
            ({"prompt": {"id": "1"}}, "group"),
            ({}, "group"),
        ):
            await opened.handle(delivery(body))
            assert user_module().manager.seen["prompt_variables"] == {"from": expected}


async def test_the_hook_sees_variables_as_none_when_there_are_none(tmp_path: Path) -> None:
    await resolve(configured(tmp_path, sync_hook(UNCHANGED)))
    assert user_module().manager.seen["prompt_variables"] is None


async def test_variables_that_are_no_object_are_the_clients_mistake(tmp_path: Path) -> None:
    outcome = await resolve(configured(tmp_path, sync_hook(UNCHANGED)), {"prompt_variables": "text"})
    assert "prompt_variables" in failed(outcome, InvalidRequest)


async def test_a_body_that_does_not_decode_is_the_clients_mistake(tmp_path: Path) -> None:
    async with resolve_stage(configured(tmp_path, sync_hook(UNCHANGED))) as opened:
        for body in (b"", b"[]", b"{", b'{"a":"\xff"}', b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"):
            failed(await opened.handle(delivery(body)), InvalidRequest)
        for messages in ("text", ["text"], {"a": 1}):
            outcome = await opened.handle(delivery({"messages": messages}))
            assert "messages" in failed(outcome, InvalidRequest)


async def test_a_repeated_key_cannot_smuggle_anything(tmp_path: Path) -> None:
    body = b'{"messages":[{"role":"user","content":"one"}],"messages":[{"role":"user","content":"two"}]}'
    outcome = await resolve(configured(tmp_path, sync_hook(UNCHANGED)), body)
    assert forwarded(outcome) == {"messages": [{"role": "user", "content": "two"}]}
    assert user_module().manager.seen["messages"][0]["content"] == "two"


async def test_no_messages_at_all_is_the_clients_mistake(tmp_path: Path) -> None:
    for messages in (..., None, []):
        outcome = await resolve(configured(tmp_path, sync_hook(UNCHANGED)), {"messages": messages})
        failed(outcome, InvalidRequest)
        assert isinstance(outcome, Fail)
        assert outcome.error.param == "messages"
    assert user_module().manager.seen["messages"] == []


async def test_the_first_manager_that_says_yes_runs_and_each_is_asked_once(tmp_path: Path) -> None:
    asking = """
    def should_run_prompt_management(self, prompt_id, prompt_spec, dynamic_callback_params):
        self.asked = getattr(self, "asked", 0) + 1
        return prompt_id == "{wanted}"
"""

    def source(hook: Any, wanted: str) -> str:
        text: str = hook(f"return model, messages + [{{'role': 'user', 'content': '{wanted}'}}], None")
        return text.replace("\nmanager =", asking.format(wanted=wanted) + "\nmanager =")

    sources = source(sync_hook, "a"), source(async_hook, "b"), source(async_hook, "b"), source(sync_hook, "c")
    async with resolve_stage(configured(tmp_path, *sources)) as opened:
        for wanted in ("a", "b", "c"):
            body = forwarded(await opened.handle(delivery({}, wanted)))
            assert [m["content"] for m in body["messages"]] == ["hi", wanted]
        asked = [user_module(name).manager.asked for name in ("hooks", "hooks1", "hooks2", "hooks3")]
        assert asked == [3, 2, 1, 1]
        message = failed(await opened.handle(delivery({}, "d")), PromptNotFound)
        assert all(f"hooks{n}.manager" in message for n in ("", 1, 2, 3))


async def test_without_a_manager_a_prompt_is_not_found(tmp_path: Path) -> None:
    outcome = await resolve(configured(tmp_path))
    assert "callbacks" in failed(outcome, PromptNotFound)


async def test_an_error_in_should_run_is_a_managers_error_and_no_skip(tmp_path: Path) -> None:
    source = sync_hook(UNCHANGED).replace(
        "\nmanager =",
        "\n    def should_run_prompt_management(self, prompt_id, **_):\n        raise KeyError('x')\nmanager =",
    )
    message = failed(await resolve(configured(tmp_path, source, sync_hook(UNCHANGED))), PromptManagerError)
    assert "hooks.manager (hooks.py:" in message
    assert "KeyError" in message


async def test_the_job_waits_a_few_times_for_a_worker_that_knows_its_model(tmp_path: Path) -> None:
    settings = configured(tmp_path, sync_hook("self.calls = getattr(self, 'calls', 0) + 1\n" + UNCHANGED), digest="new")
    async with resolve_stage(settings) as opened:
        waited = []
        job: Any = {"model": "later", "config": "old"}
        outcome = await opened.handle(delivery({}, **job))
        while isinstance(outcome, Defer):
            waited.append(outcome.seconds)
            assert outcome.job.deferrals == len(waited)
            outcome = await opened.handle(delivery({}, **job, deferrals=outcome.job.deferrals))
        assert len(waited) == 16
        assert 7.5 < sum(waited) < 22.5
        assert "later" in failed(outcome, ConfigMismatch)
        assert user_module().manager.calls == 1  # only then: the manager might have chosen another model
        known = await opened.handle(delivery({}, config="old"))
        assert isinstance(known, Forward)
        assert known.job.config == "new"  # by which the model was chosen: dispatch defers what it does not know of it


async def test_a_known_model_is_never_deferred_for_what_the_manager_chose(tmp_path: Path) -> None:
    settings = configured(tmp_path, sync_hook("return 'nobody', messages, None"), digest="new")
    failed(await resolve(settings, config="old"), PromptModelUnknown)


async def test_a_text_input_of_responses_is_one_user_message_and_comes_back_as_input(tmp_path: Path) -> None:
    body = {"messages": ..., "input": "hi", "instructions": "short", "metadata": {"a": "b"}}
    outcome = await resolve(seed(tmp_path), body, operation="responses")
    assert forwarded(outcome) == {
        "input": [{"role": "system", "content": "Be a good Bot!"}, HI],
        "instructions": "short",
        "metadata": {"a": "b"},
    }


async def test_an_unchanged_input_of_responses_stays_as_it_was(tmp_path: Path) -> None:
    settings = configured(tmp_path, async_hook(UNCHANGED))
    for given in ("hi", [], [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}]):
        outcome = await resolve(settings, {"messages": ..., "input": given}, operation="responses")
        assert forwarded(outcome) == {"input": given}


async def test_responses_work_with_a_prompt_object_alone(tmp_path: Path) -> None:
    source = async_hook("return 'gpt-4', [{'role': 'user', 'content': kw['prompt_variables']['x']}], None")
    body = {"messages": ..., "prompt": {"id": "p", "version": "2", "variables": {"x": "y"}}}
    prompt = PromptRef(id="p", version="2", source="object")
    outcome = await resolve(configured(tmp_path, source), body, operation="responses", model="", prompt=prompt)
    assert forwarded(outcome) == {"input": [{"role": "user", "content": "y"}]}
    seen = user_module().manager.seen
    assert (seen["messages"], seen["prompt_version"], seen["model"]) == ([], "2", "")


async def test_an_input_of_the_wrong_type_is_the_clients_mistake(tmp_path: Path) -> None:
    outcome = await resolve(seed(tmp_path), {"messages": ..., "input": 5}, operation="responses")
    assert "input" in failed(outcome, InvalidRequest)


TEXTS = [("completions", "prompt"), ("embeddings", "input"), ("moderations", "input")]


@pytest.mark.parametrize(("operation", "field"), TEXTS)
async def test_a_text_is_one_user_message_and_the_messages_become_one_text(
    tmp_path: Path, operation: str, field: str
) -> None:
    body = {"messages": ..., field: "hi", "user": "me"}
    outcome = await resolve(seed(tmp_path), body, operation=operation)
    assert forwarded(outcome) == {field: "Be a good Bot!\n\nhi", "user": "me"}


@pytest.mark.parametrize(("operation", "field"), TEXTS)
async def test_a_text_the_manager_left_alone_stays_as_it_was(tmp_path: Path, operation: str, field: str) -> None:
    outcome = await resolve(
        configured(tmp_path, sync_hook(UNCHANGED)), {"messages": ..., field: "hi"}, operation=operation
    )
    assert forwarded(outcome) == {field: "hi"}


@pytest.mark.parametrize(("operation", "field"), TEXTS)
async def test_a_prompt_is_filled_with_one_text_and_not_with_several(
    tmp_path: Path, operation: str, field: str
) -> None:
    for several in (["a", "b"], [1, 2], [{"type": "text", "text": "a"}]):
        outcome = await resolve(seed(tmp_path), {"messages": ..., field: several}, operation=operation)
        assert f"one text; send `{field}` as one" in failed(outcome, InvalidRequest)
    nothing = await resolve(configured(tmp_path, sync_hook(UNCHANGED)), {"messages": ...}, operation=operation)
    assert field in failed(nothing, InvalidRequest)


async def test_a_manager_returns_a_text_as_a_message_and_not_as_a_parameter(tmp_path: Path) -> None:
    source = sync_hook("return model, messages, {'prompt': 'mine'}")
    outcome = await resolve(configured(tmp_path, source), {"messages": ..., "prompt": "hi"}, operation="completions")
    assert "second element" in failed(outcome, PromptManagerError)


async def test_user_code_never_runs_on_the_transports_thread(tmp_path: Path) -> None:
    noting = """
    def should_run_prompt_management(self, prompt_id, prompt_spec, dynamic_callback_params):
        self.where = [threading.get_ident()]
        return True
"""
    for hook in (sync_hook, async_hook):
        source = hook("self.where.append(threading.get_ident())\n" + UNCHANGED)
        await resolve(configured(tmp_path, source.replace("\nmanager =", noting + "\nmanager =")))
        where = user_module().manager.where
        assert len(where) == 2
        assert threading.get_ident() not in where


async def test_one_delivery_is_one_call_of_one_hook_and_the_asynchronous_one_wins(tmp_path: Path) -> None:
    both = async_hook("self.calls = getattr(self, 'calls', []) + ['async']\n" + UNCHANGED).replace(
        "\nmanager =",
        "\n    def get_chat_completion_prompt(self, model, messages, non_default_params, prompt_id, **kw):\n"
        "        self.calls = getattr(self, 'calls', []) + ['sync']\n"
        "        return model, messages, non_default_params\nmanager =",
    )
    await resolve(configured(tmp_path, both))
    assert user_module().manager.calls == ["async"]


async def test_other_fields_stay_for_the_dispatch_stage_byte_for_byte(tmp_path: Path) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"num_retries": 3,"x":1.0,"tools":[ ]}'
    outcome = await resolve(seed(tmp_path), body, "other")
    assert isinstance(outcome, Forward)
    assert outcome.body.endswith(b'"num_retries":3,"x":1.0,"tools":[ ]}')


def test_the_stage_says_what_the_runner_needs(tmp_path: Path) -> None:
    assert (stage.name, stage.max_deliveries, stage.slots(configured(tmp_path))) == ("resolve", 3, 64)
    error = stage.poisoned("0-abc")
    assert type(error) is PromptWorkerLost
    assert "0-abc" in error.message
    assert error.hint
    assert msgspec.to_builtins(error.fields())["should_retry"] is False
