"""The base classes that managers written for LiteLLM inherit from, as their documentation describes them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypedDict


class PromptManagementClient(TypedDict):
    """What a compile helper returns; `completed_messages` is filled in by `compile_prompt`."""

    prompt_id: str | None
    prompt_template: list[Any]
    prompt_template_model: str | None
    prompt_template_optional_params: dict[str, Any] | None
    completed_messages: list[Any] | None


def _nothing(self: object, *args: object, **kwargs: object) -> None:
    """Stand for a logging hook that is not overridden."""


async def _nothing_async(self: object, *args: object, **kwargs: object) -> None:
    """Stand for an asynchronous hook that is not overridden."""


class CustomLogger:
    """Base of callback objects. Only the prompt hook runs here; the others exist for overriding and `super()`."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    log_pre_api_call = log_post_api_call = log_stream_event = _nothing
    log_success_event = log_failure_event = _nothing
    async_log_pre_api_call = async_log_stream_event = async_log_success_event = async_log_failure_event = _nothing_async
    async_pre_call_hook = async_moderation_hook = async_pre_request_hook = _nothing_async
    async_pre_call_deployment_hook = async_pre_routing_hook = _nothing_async
    async_post_call_success_hook = async_post_call_failure_hook = async_post_call_streaming_hook = _nothing_async
    async_post_call_response_headers_hook = _nothing_async

    async def async_get_chat_completion_prompt(
        self, model: str, messages: list[Any], non_default_params: dict[str, Any], *args: object, **kwargs: object
    ) -> tuple[str, list[Any], dict[str, Any]]:
        """Return what came in; it does not call the synchronous hook."""
        return model, messages, non_default_params


class PromptManagementBase:
    """Managers built from a template: a compile helper gives it, the rest puts it before the client's messages."""

    @property
    def integration_name(self) -> str:
        """Name that may prefix a model and is taken off it."""
        raise NotImplementedError("a prompt manager built on PromptManagementBase defines `integration_name`")

    def should_run_prompt_management(self, prompt_id: Any, prompt_spec: Any, dynamic_callback_params: Any) -> bool:
        """Whether this manager serves `prompt_id`."""
        raise NotImplementedError("a prompt manager built on PromptManagementBase defines should_run_prompt_management")

    def _compile_prompt_helper(self, *args: Any, **kwargs: Any) -> PromptManagementClient:
        raise NotImplementedError("a prompt manager built on PromptManagementBase defines `_compile_prompt_helper`")

    async def async_compile_prompt_helper(self, *args: Any, **kwargs: Any) -> PromptManagementClient:
        """Return the template of a prompt; without an override, the synchronous helper's."""
        given = {**kwargs, **dict(zip(_HELPER_ARGUMENTS, args, strict=False))}
        client: PromptManagementClient = _call(self._compile_prompt_helper, given)
        return client

    def merge_messages(self, prompt_template: list[Any], client_messages: list[Any]) -> list[Any]:
        """Return the template's messages, then the client's."""
        return [*prompt_template, *client_messages]

    def compile_prompt(
        self, prompt_id: str | None, prompt_variables: Any, client_messages: list[Any], **rest: Any
    ) -> PromptManagementClient:
        """Return the helper's template with `completed_messages` filled in."""
        arguments = _helper_arguments(prompt_id, prompt_variables, rest)
        return self._completed(_call(self._compile_prompt_helper, arguments), client_messages)

    async def async_compile_prompt(
        self, prompt_id: str | None, prompt_variables: Any, client_messages: list[Any], **rest: Any
    ) -> PromptManagementClient:
        """Return the asynchronous helper's template with `completed_messages` filled in."""
        arguments = _helper_arguments(prompt_id, prompt_variables, rest)
        return self._completed(await _call(self.async_compile_prompt_helper, arguments), client_messages)

    def get_chat_completion_prompt(
        self,
        model: str,
        messages: list[Any],
        non_default_params: dict[str, Any],
        prompt_id: str | None,
        prompt_variables: Any = None,
        dynamic_callback_params: Any = None,
        prompt_spec: Any = None,
        prompt_label: str | None = None,
        prompt_version: Any = None,
        ignore_prompt_manager_model: bool = False,
        ignore_prompt_manager_optional_params: bool = False,
        **_: Any,
    ) -> tuple[str, list[Any], dict[str, Any]]:
        """Return model, messages and parameters with the template applied; the template's parameters win."""
        if prompt_id is None:
            return model, messages, non_default_params
        client = self.compile_prompt(
            prompt_id,
            prompt_variables,
            messages,
            dynamic_callback_params=dynamic_callback_params,
            prompt_spec=prompt_spec,
            prompt_label=prompt_label,
            prompt_version=prompt_version,
        )
        ignored = ignore_prompt_manager_model, ignore_prompt_manager_optional_params
        return self.post_compile_prompt_processing(client, messages, non_default_params, model, *ignored)

    async def async_get_chat_completion_prompt(
        self,
        model: str,
        messages: list[Any],
        non_default_params: dict[str, Any],
        prompt_id: str | None,
        prompt_variables: Any = None,
        dynamic_callback_params: Any = None,
        litellm_logging_obj: Any = None,
        prompt_spec: Any = None,
        tools: Any = None,
        prompt_label: str | None = None,
        prompt_version: Any = None,
        ignore_prompt_manager_model: bool = False,
        ignore_prompt_manager_optional_params: bool = False,
        **_: Any,
    ) -> tuple[str, list[Any], dict[str, Any]]:
        """Return model, messages and parameters with the template of the asynchronous helper applied."""
        client = await self.async_compile_prompt(
            prompt_id,
            prompt_variables,
            messages,
            dynamic_callback_params=dynamic_callback_params,
            prompt_spec=prompt_spec,
            prompt_label=prompt_label,
            prompt_version=prompt_version,
        )
        ignored = ignore_prompt_manager_model, ignore_prompt_manager_optional_params
        return self.post_compile_prompt_processing(client, messages, non_default_params, model, *ignored)

    def post_compile_prompt_processing(
        self,
        prompt_template: PromptManagementClient,
        messages: list[Any],
        non_default_params: dict[str, Any],
        model: str,
        ignore_prompt_manager_model: bool = False,
        ignore_prompt_manager_optional_params: bool = False,
    ) -> tuple[str, list[Any], dict[str, Any]]:
        """Return the hook's triple for a compiled template."""
        completed = prompt_template.get("completed_messages") or messages
        if not ignore_prompt_manager_model:
            model = self._get_model_from_prompt(prompt_template, model)
        extra = (
            None if ignore_prompt_manager_optional_params else prompt_template.get("prompt_template_optional_params")
        )
        return model, completed, {**non_default_params, **(extra or {})}

    def _get_model_from_prompt(self, prompt_management_client: PromptManagementClient, model: str) -> str:
        chosen = prompt_management_client.get("prompt_template_model")
        return chosen if chosen is not None else model.replace(f"{self.integration_name}/", "")

    def _completed(self, client: PromptManagementClient, client_messages: list[Any]) -> PromptManagementClient:
        client["completed_messages"] = self.merge_messages(client["prompt_template"], client_messages)
        return client


class CustomPromptManagement(CustomLogger, PromptManagementBase):
    """What an operator's manager inherits from; subclasses need not call `super().__init__()`."""

    def __init__(
        self,
        ignore_prompt_manager_model: bool = False,
        ignore_prompt_manager_optional_params: bool = False,
        **kwargs: Any,
    ) -> None:
        self.ignore_prompt_manager_model = ignore_prompt_manager_model
        self.ignore_prompt_manager_optional_params = ignore_prompt_manager_optional_params

    @property
    def integration_name(self) -> str:
        """Name that may prefix a model and is taken off it."""
        return "custom-prompt-management"

    def should_run_prompt_management(self, prompt_id: Any, prompt_spec: Any, dynamic_callback_params: Any) -> bool:
        """Serve every prompt."""
        return True

    def get_chat_completion_prompt(
        self, model: str, messages: list[Any], non_default_params: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[str, list[Any], dict[str, Any]]:
        """Return what came in."""
        return model, messages, non_default_params


_HELPER_ARGUMENTS = (
    "prompt_id",
    "prompt_variables",
    "dynamic_callback_params",
    "prompt_spec",
    "prompt_label",
    "prompt_version",
)


def _helper_arguments(prompt_id: str | None, prompt_variables: Any, rest: dict[str, Any]) -> dict[str, Any]:
    """Return a compile helper's arguments; what the caller left out is None, the callback parameters `{}`."""
    given = {"prompt_id": prompt_id, "prompt_variables": prompt_variables, **rest}
    arguments = {name: given.get(name) for name in _HELPER_ARGUMENTS}
    arguments["dynamic_callback_params"] = arguments["dynamic_callback_params"] or {}
    return arguments


def _call(helper: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call `helper` with those of `arguments` that it takes: its signature grew over LiteLLM's releases."""
    names = _accepted(getattr(helper, "__func__", helper))
    return helper(**(arguments if names is None else {n: v for n, v in arguments.items() if n in names}))


@functools.lru_cache(maxsize=256)
def _accepted(function: Callable[..., Any]) -> frozenset[str] | None:
    """Return the names a function takes by keyword; None when it takes any."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters)
