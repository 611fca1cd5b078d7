"""The layout of scenarios about limits: few slots, short times, and prompts that misbehave when asked to."""

from __future__ import annotations

from chaos.arena import PROMPT, PROVIDER_KEY, Layout

PROMPT_TIMEOUT = 2.0
PROMPT_SLOTS = 16
BLOCKED = 8.0
"""Seconds the prompt `block` takes: long after its time is up, and over when the next scenario begins."""
DISPATCH_SLOTS = 16
RESPONSE_BYTES = 2**20
HEAD_TIMEOUT = 3.0
BODY_TIMEOUT = 3.0
PROVIDER_TIMEOUT = 1.0
"""Seconds the model `impatient` gives its provider."""
LEAKED = 16 * 2**20
"""Bytes each run of the prompt `leak` keeps."""

_MANAGER = f"""
import asyncio, builtins, os, time
from litellm.integrations.custom_prompt_management import CustomPromptManagement

HELD = []

def resolved(model, messages, params):
    return model, [{{"role": "system", "content": "{PROMPT}"}}, *messages], params

def behave(what):
    if what == "exit":
        os._exit(3)
    if what == "block":
        time.sleep({BLOCKED})
    if what == "leak":
        HELD.append(bytearray({LEAKED}))
    if what == "hoard":
        bytearray(2**36)
    if what == "slow":
        time.sleep(1)
    if what == "cancelled":
        raise asyncio.CancelledError
    if what in dir(builtins):
        raise getattr(builtins, what)("as it was asked to")

class Mine(CustomPromptManagement):
    def should_run_prompt_management(self, prompt_id, dynamic_callback_params):
        return not prompt_id.startswith("async ")

    def get_chat_completion_prompt(
        self, model, messages, non_default_params, prompt_id, prompt_variables, dynamic_callback_params
    ):
        behave(prompt_id)
        time.sleep(0.01)
        return resolved(model, messages, non_default_params)

class Asynchronous(CustomPromptManagement):
    async def async_get_chat_completion_prompt(
        self, model, messages, non_default_params, prompt_id, prompt_variables, dynamic_callback_params
    ):
        behave(prompt_id.removeprefix("async "))
        await asyncio.sleep(60 if prompt_id == "async hang" else 0.01)
        return resolved(model, messages, non_default_params)

mine, asynchronous = Mine(), Asynchronous()
"""

_PARAMS = f"model: openai/gpt-4, api_key: {PROVIDER_KEY}"
_USUAL = f'{_PARAMS}, api_base: "http://PROVIDER/v1"'

_MODELS = f"""{{model_name: impatient, litellm_params: {{{_USUAL}, timeout: {PROVIDER_TIMEOUT}}}}}
{{model_name: pair, model_info: {{id: one}}, litellm_params: {{{_USUAL}}}}}
{{model_name: pair, model_info: {{id: two}}, litellm_params: {{{_USUAL}}}}}
{{model_name: refused, litellm_params: {{{_PARAMS}, api_base: "http://127.0.0.1:9/v1"}}}}
{{model_name: tls, litellm_params: {{{_PARAMS}, api_base: "https://PROVIDER/v1"}}}}"""

_SETTINGS = f"""prompt_timeout: {PROMPT_TIMEOUT}
prompt_slots: {PROMPT_SLOTS}
dispatch_slots: {DISPATCH_SLOTS}
max_response_bytes: {RESPONSE_BYTES}
head_timeout: {HEAD_TIMEOUT}
body_timeout: {BODY_TIMEOUT}"""

TIGHT = Layout(settings=_SETTINGS, manager=_MANAGER, callbacks="mine.mine, mine.asynchronous", models=_MODELS)
