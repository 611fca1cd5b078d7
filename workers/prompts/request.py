"""What a hook is told about a request, as private copies made where the hook runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from pipeline.body_fields import is_for_gateway
from pipeline.errors import InvalidRequest
from pipeline.job import Job, PromptRef, decode_json
from workers.prompts import fields
from workers.prompts.shim.types import Logging

_decode_body = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

NULL: Final = msgspec.Raw(b"null")


class HookRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request as its hook sees it. The body's values stay encoded: each run decodes copies of its own."""

    body: dict[str, msgspec.Raw]
    prompt: PromptRef
    operation: str = "chat.completions"
    model: str = ""
    """The client's model name; empty when it named none."""
    variables: msgspec.Raw | None = None
    group_variables: Mapping[str, Any] | None = None
    """Used when the request brings no variables."""
    tenant: str = ""
    headers: Mapping[str, str] = {}
    endpoint: str = ""
    job_id: str = ""
    traceparent: str = ""

    def raw(self, name: str) -> msgspec.Raw | None:
        """Return a body field, encoded; None when it is absent or null."""
        value = self.body.get(name)
        return None if value is None or value == NULL else value

    def messages(self) -> list[Any]:
        """Return the conversation as a fresh list, empty when the client sent none; a text is a user message."""
        name = fields.messages_field(self.operation)
        value = copy(self.raw(name))
        if value is None:
            return []
        if name != "messages" and isinstance(value, str):
            return [{"role": "user", "content": value}]
        if fields.is_text(self.operation):
            raise InvalidRequest(f"a prompt is filled with one text; send `{name}` as one, not as a list", param=name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise InvalidRequest(f"`{name}` must be a list of objects; send it as such", param=name)
        return value

    def params(self) -> dict[str, Any]:
        """Return a fresh copy of every ordinary field, and `metadata` with what the gateway vouches for."""
        hidden = ("model", "stream", fields.messages_field(self.operation))
        params = {
            name: copy(value) for name, value in self.body.items() if name not in hidden and not _withheld(name, value)
        }
        params["metadata"] = self.metadata()
        return params

    def metadata(self) -> dict[str, Any]:
        """Return the client's metadata with ours over it, so that a client cannot pose as another."""
        original = copy(self.raw("metadata"))
        known = original if isinstance(original, dict) else {}
        return {
            **known,
            "user_api_key_alias": self.tenant,
            "requester_metadata": copy(self.raw("metadata")) if known else {},
            "headers": dict(self.headers),
            "endpoint": self.endpoint,
        }

    def prompt_variables(self) -> dict[str, Any] | None:
        """Return a fresh copy of the prompt's variables; None when there are none."""
        if self.variables is not None:
            value = copy(self.variables)
            if not isinstance(value, dict):
                raise InvalidRequest("`prompt_variables` must be an object; send it as such", param="prompt_variables")
            return value
        return dict(decode_json(msgspec.json.encode(self.group_variables))) if self.group_variables else None


def hook_request(
    job: Job, prompt: PromptRef, body: dict[str, msgspec.Raw], group: Mapping[str, Any] | None
) -> HookRequest:
    """Return what the hook is told about `job`; `group` holds the model group's own variables."""
    return HookRequest(
        body=body,
        prompt=prompt,
        operation=job.operation,
        model=job.model,
        variables=_variables(body),
        group_variables=group,
        tenant=job.tenant,
        headers=job.headers,
        endpoint=job.endpoint,
        job_id=job.id,
        traceparent=job.traceparent,
    )


def decode_body(body: bytes) -> dict[str, msgspec.Raw]:
    """Decode a body's top level; a repeated key keeps its last value. Raises InvalidRequest."""
    try:
        return _decode_body(body)
    except msgspec.ValidationError:
        raise InvalidRequest("the body is not a JSON object; send one") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not valid JSON ({error}); send a JSON object") from None


def copy(value: msgspec.Raw | None) -> Any:
    """Return a fresh Python copy of an encoded value. Raises InvalidRequest: only the top level was decoded before."""
    if value is None:
        return None
    try:
        return decode_json(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not valid JSON ({error}); send a JSON object") from None


def is_prompt_object(name: str, value: msgspec.Raw) -> bool:
    """Whether a field is OpenAI's `prompt` object; on other dialects `prompt` may be text."""
    return name == "prompt" and bytes(memoryview(value)[:1]) == b"{"


def _variables(body: dict[str, msgspec.Raw]) -> msgspec.Raw | None:
    """Return the variables the request brings: `prompt_variables`, else those of the `prompt` object."""
    for value in (body.get("prompt_variables"), _object_variables(body.get("prompt"))):
        if value is not None and value != NULL:
            return value
    return None


def _object_variables(prompt: msgspec.Raw | None) -> msgspec.Raw | None:
    if prompt is None or not is_prompt_object("prompt", prompt):
        return None
    return _decode_body(prompt).get("variables")


def _withheld(name: str, value: msgspec.Raw) -> bool:
    return is_for_gateway(name) or is_prompt_object(name, value)


def _stand_in(request: HookRequest) -> Logging:
    """Return what `litellm_logging_obj` has that hooks use."""
    trace = request.traceparent.split("-")[1:2]
    return Logging(
        model_call_details={},
        litellm_call_id=request.job_id,
        litellm_trace_id=trace[0] if trace else request.job_id,
    )


ARGUMENTS: Final[Mapping[str, Callable[[HookRequest], Any]]] = {
    "model": lambda request: request.model,
    "messages": HookRequest.messages,
    "non_default_params": HookRequest.params,
    "prompt_id": lambda request: request.prompt.id,
    "prompt_variables": HookRequest.prompt_variables,
    "dynamic_callback_params": lambda _: {},
    "litellm_logging_obj": _stand_in,
    "prompt_spec": lambda _: None,
    "tools": lambda request: copy(request.raw("tools")),
    "prompt_label": lambda request: request.prompt.label,
    "prompt_version": lambda request: request.prompt.version,
    "ignore_prompt_manager_model": lambda _: False,
    "ignore_prompt_manager_optional_params": lambda _: False,
}
"""Every parameter a hook may take, and how its value is made."""
