"""What a hook returns: checked, merged over the client's fields, and refused with words that help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes.prompts import async_hook, configured, failed, forwarded, resolve, sync_hook

from pipeline.body_fields import CREDENTIAL_FIELDS
from pipeline.errors import PromptManagerError
from pipeline.stage import Fail, Forward
from workers.prompts import results

pytestmark = pytest.mark.anyio

USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("None", "a NoneType"),
        ("'text'", "a str"),
        ("(model, messages)", "a tuple of 2"),
        ("[model, messages, None]", "a list"),
        ("(None, messages, None)", "the model it returned is a NoneType"),
        ("(model, None, None)", "the messages it returned are a NoneType"),
        ("(model, tuple(messages), None)", "are a tuple"),
        ("(model, messages, [])", "the parameters it returned are a list"),
        ("(model, ['text'], None)", "messages[0] of what it returned is a str"),
        ("(model, [{'role': object()}], None)", "the messages cannot be sent as JSON"),
        ("(model, messages, {'seed': object()})", "the parameter 'seed' cannot be sent as JSON"),
        ("(model, messages, {'seed': '\\ud800'})", "the parameter 'seed' cannot be sent as JSON"),
        ("(model, [{'role': 'user', 'content': b'text'}], None)", "the messages cannot be sent as JSON (bytes in it)"),
        ("(model, [{'content': [{'text': memoryview(b'')}]}], None)", "messages cannot be sent as JSON (memoryview in"),
        ("(model, messages, {'stop': {'a', 'b'}})", "the parameter 'stop' cannot be sent as JSON (set in it)"),
        ("(model, messages, {'top_p': float('nan')})", "the parameter 'top_p' cannot be sent as JSON (nan in it)"),
        (
            "(model, messages, {'top_p': __import__('decimal').Decimal('inf')})",
            "'top_p' cannot be sent as JSON (Infinity in it)",
        ),
        ("(model, messages, {'metadata': {'key': b''}})", "metadata cannot be sent as JSON (bytes in it)"),
        ("(model, messages, {1: 2})", "the key 1"),
        ("(model, messages, {'extra_body': {'top_k': 5}})", "beside the other parameters"),
    ],
)
@pytest.mark.parametrize("hook", [sync_hook, async_hook])
async def test_anything_but_the_triple_is_an_error_saying_what_came(
    tmp_path: Path, hook: Any, returned: str, words: str
) -> None:
    outcome = await resolve(configured(tmp_path, hook(f"return {returned}")))
    message = failed(outcome, PromptManagerError)
    assert words in message
    assert "hooks.manager (hooks.py:4)" in message
    assert isinstance(outcome, Fail)
    fields = outcome.error.fields()
    assert (fields.status, fields.code, fields.should_retry) == (502, "prompt_manager_error", False)


async def test_a_value_without_end_is_an_error(tmp_path: Path) -> None:
    source = sync_hook("messages[0]['self'] = messages\nreturn model, messages, None")
    assert "JSON" in failed(await resolve(configured(tmp_path, source)), PromptManagerError)


async def test_a_synchronous_hook_that_returns_a_coroutine_is_told_so(tmp_path: Path) -> None:
    source = sync_hook("async def later(): return 1\nreturn later()")
    assert "async def" in failed(await resolve(configured(tmp_path, source)), PromptManagerError)


async def test_a_result_over_the_limit_is_an_error_naming_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert results.LARGEST == 32 * 2**20
    monkeypatch.setattr(results, "LARGEST", 1000)
    source = sync_hook("return model, [{'role': 'user', 'content': 'x' * 1000}], None")
    assert "bytes of JSON" in failed(await resolve(configured(tmp_path, source)), PromptManagerError)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("return model, messages, {'temperature': 0.1, 'top_p': 1}", {"temperature": 0.1, "top_p": 1, "user": "u"}),
        ("return model, messages, dict(non_default_params, temperature=0)", {"temperature": 0, "user": "u"}),
        ("return model, messages, {'user': None}", {"temperature": 0.9}),
        ("return model, messages, {'absent': None}", {"temperature": 0.9, "user": "u"}),
        (
            "non_default_params.pop('user'); return model, messages, non_default_params",
            {"temperature": 0.9, "user": "u"},
        ),
        ("return model, messages, {}", {"temperature": 0.9, "user": "u"}),
        ("return model, messages, None", {"temperature": 0.9, "user": "u"}),
    ],
)
async def test_the_managers_parameters_win_and_none_removes(tmp_path: Path, code: str, expected: Any) -> None:
    body = forwarded(await resolve(configured(tmp_path, sync_hook(code)), {"temperature": 0.9, "user": "u"}))
    body.pop("messages")
    assert body == expected


@pytest.mark.parametrize("name", ["stream", "model", "messages", "input", *sorted(CREDENTIAL_FIELDS)])
async def test_what_a_manager_may_not_set_is_an_error_naming_the_key(tmp_path: Path, name: str) -> None:
    source = sync_hook(f"return model, messages, {{{name!r}: 'x'}}")
    assert repr(name) in failed(await resolve(configured(tmp_path, source)), PromptManagerError)


async def test_what_the_client_sent_may_be_handed_back(tmp_path: Path) -> None:
    source = sync_hook("return model, messages, {'stream': True, 'prompt_id': 'other', 'prompt': {'id': 'x'}}")
    outcome = await resolve(configured(tmp_path, source), {"stream": True})
    assert forwarded(outcome) == {"messages": [USER], "stream": True}
    assert isinstance(outcome, Forward)
    assert outcome.job.facts.prompt == "unchanged"


async def test_spaces_and_escapes_of_the_client_are_no_change(tmp_path: Path) -> None:
    body = b'{"messages": [{"role" : "user", "content": "h\\u0069"}], "stop": [ "a" ]}'
    outcome = await resolve(configured(tmp_path, sync_hook("return model, messages, non_default_params")), body)
    assert isinstance(outcome, Forward)
    assert outcome.body == b'{"messages":[{"role" : "user", "content": "h\\u0069"}],"stop":[ "a" ]}'
    assert outcome.job.facts.prompt == "unchanged"


async def test_subclasses_of_plain_values_and_pydantic_like_models_are_plain_values(tmp_path: Path) -> None:
    source = sync_hook("""
        class Text(str):
            def __str__(self): return "never asked"
        class Number(int): pass
        class Real(float): pass
        class Message(dict): pass
        class Model:
            def model_dump(self, **kw): return {"type": "text", "text": str(kw)}
        content = [Model()]
        price = {"temperature": __import__("decimal").Decimal("0.70")}
        params = {Text("seed"): Number(7), "user": Text("u"), "top_p": Real(0.5), **price}
        return Text("gpt-4"), [Message(role=Text("user"), content=content)], params
    """)
    body = forwarded(await resolve(configured(tmp_path, source)))
    assert body == {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "{'exclude_none': True}"}]}],
        "seed": 7,
        "user": "u",
        "top_p": 0.5,
        "temperature": 0.7,
    }


async def test_chat_messages_of_a_manager_become_responses_items(tmp_path: Path) -> None:
    source = sync_hook("""
        return model, [
            {"role": "system", "content": [{"type": "text", "text": "s"}]},
            *messages,
            {"role": "user", "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "http://x/a.png", "detail": "low"}},
                {"type": "image_url", "image_url": "http://x/b.png"},
                {"type": "input_file", "file_id": "f"},
                "odd",
            ]},
            {"role": "assistant", "content": None,
             "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "42"}]},
            {"role": "tool", "tool_call_id": "c2", "content": "43"},
            {"role": "assistant", "content": [{"type": "text", "text": "done"}]},
            {"role": "user", "content": None},
            {"no": "role"},
        ], None
    """)
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    easy = {"role": "user", "content": [{"type": "text", "text": "as the client wrote it"}]}
    body = {"messages": ..., "input": [item, easy]}
    assert forwarded(await resolve(configured(tmp_path, source), body, operation="responses")) == {
        "input": [
            {"role": "system", "content": [{"type": "input_text", "text": "s"}]},
            item,
            easy,
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "look"},
                    {"type": "input_image", "image_url": "http://x/a.png", "detail": "low"},
                    {"type": "input_image", "image_url": "http://x/b.png"},
                    {"type": "input_file", "file_id": "f"},
                    "odd",
                ],
            },
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "42"},
            {"type": "function_call_output", "call_id": "c2", "output": "43"},
            {"role": "assistant", "content": [{"type": "output_text", "text": "done"}]},
            {"role": "user", "content": ""},
            {"no": "role"},
        ]
    }


@pytest.mark.parametrize("hook", [sync_hook, async_hook])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ValueError('no such prompt\\nsecret second line')", "ValueError: no such prompt"),
        ("raise SystemExit(1)", "SystemExit: 1"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise asyncio.CancelledError", "cancelled by its own code"),
        ("raise GeneratorExit", "GeneratorExit"),
        (r"raise ValueError('half a pair: \ud800')", r"ValueError: half a pair: \ud800"),
        (
            "raise OSError('cannot reach postgres://me:secret@db/x with sk-abcdef123')",
            "postgres://[redacted]db/x with [redacted]",
        ),
    ],
)
async def test_whatever_a_hook_raises_is_a_managers_error_with_file_and_line(
    tmp_path: Path, hook: Any, code: str, words: str
) -> None:
    message = failed(await resolve(configured(tmp_path, hook(code))), PromptManagerError)
    assert message.startswith("prompt manager hooks.manager (hooks.py:6): ")
    assert words in message
    assert "secret" not in message
    assert "Traceback" not in message


async def test_an_error_below_the_hook_is_told_at_the_innermost_place_in_the_users_files(tmp_path: Path) -> None:
    (tmp_path / "templates_of_hooks.py").write_text("import json\ndef render():\n    return json.loads('{')\n")
    source = "import templates_of_hooks\n" + sync_hook("templates_of_hooks.render()")
    message = failed(await resolve(configured(tmp_path, source)), PromptManagerError)
    assert "(templates_of_hooks.py:3): raised JSONDecodeError" in message


@pytest.mark.parametrize("error", ["RuntimeError", "SystemExit", "KeyboardInterrupt"])
async def test_an_error_whose_words_cannot_be_had_is_told_by_its_class(tmp_path: Path, error: str) -> None:
    source = sync_hook(f"""
        class Odd(Exception):
            def __str__(self): raise {error}
        raise Odd
    """)
    assert failed(await resolve(configured(tmp_path, source)), PromptManagerError).endswith("raised Odd")


async def test_a_responses_item_of_a_subclass_is_a_plain_item(tmp_path: Path) -> None:
    source = sync_hook("""
        class Text(str): pass
        return model, messages + [{"role": "user", "content": Text("more")}], None
    """)
    outcome = await resolve(configured(tmp_path, source), {"messages": ..., "input": "hi"}, operation="responses")
    assert forwarded(outcome) == {"input": [USER, {"role": "user", "content": "more"}]}


async def test_fields_that_look_odd_but_are_the_clients_reach_the_hook_and_go_on(tmp_path: Path) -> None:
    source = sync_hook("non_default_params['chat_template']['b'] = 2; return model, messages, non_default_params")
    outcome = await resolve(configured(tmp_path, source), {"chat_template": {"a": 1}})
    assert forwarded(outcome)["chat_template"] == {"a": 1, "b": 2}
