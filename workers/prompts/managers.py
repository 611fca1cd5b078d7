"""What a callback object is to us: which hook it has, which arguments that takes, and what on it does not run here."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from pipeline.errors import ConfigurationError
from workers.prompts.request import ARGUMENTS, HookRequest

ASYNC_HOOK: Final = "async_get_chat_completion_prompt"
SYNC_HOOK: Final = "get_chat_completion_prompt"
SHOULD_RUN: Final = "should_run_prompt_management"
_HELPERS: Final = {"async_compile_prompt_helper": ASYNC_HOOK, "_compile_prompt_helper": SYNC_HOOK}

_BASES: Final = frozenset(
    {
        "litellm.integrations.custom_logger",
        "litellm.integrations.custom_prompt_management",
        "litellm.integrations.prompt_management_base",
        "workers.prompts.shim.classes",
    }
)
"""Modules whose classes only declare hooks: what is defined there is not overridden."""

CONTROLS: Final = (
    "async_pre_call_hook",
    "async_moderation_hook",
    "async_pre_request_hook",
    "async_filter_deployments",
    "async_pre_routing_hook",
    "async_pre_call_deployment_hook",
    "async_pre_call_check",
    "pre_call_check",
    "async_post_call_success_hook",
    "async_post_call_success_deployment_hook",
    "async_post_call_streaming_hook",
    "async_post_call_streaming_iterator_hook",
    "async_post_call_streaming_deployment_hook",
    "async_post_call_response_headers_hook",
)
"""Hooks that change or refuse requests or answers. They do not run here, and dropping a control silently is unsafe."""

LOGGING: Final = (
    "log_pre_api_call",
    "log_post_api_call",
    "log_stream_event",
    "log_success_event",
    "log_failure_event",
    "async_log_pre_api_call",
    "async_log_stream_event",
    "async_log_success_event",
    "async_log_failure_event",
    "async_post_call_failure_hook",
    "logging_hook",
    "async_logging_hook",
)
"""Hooks that only watch; they do not run here either."""


class Manager(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt manager, read once at load: calling it costs no inspection."""

    path: str
    """What it is called in errors: its dotted path in the configuration."""
    kind: str
    """Name of its class."""
    file: str
    """Where the hook is defined."""
    line: int
    hook: Callable[..., Any]
    hook_name: str
    is_async: bool
    parameters: tuple[str, ...]
    should_run: Callable[..., Any] | None
    """None when it serves every prompt."""
    should_run_parameters: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    """Hooks on the object that do not run here."""
    secrets: tuple[str, ...] = ()
    """What its errors must not tell, though its code may have read it somewhere."""

    @property
    def directory(self) -> str:
        """Where the user's files are; places in errors are told relative to it."""
        return os.path.dirname(self.file)

    def arguments(self, request: HookRequest) -> dict[str, Any]:
        """Return the hook's arguments: private copies, made anew for every call."""
        return {name: ARGUMENTS[name](request) for name in self.parameters}

    def wants(self, request: HookRequest) -> bool:
        """Ask the manager whether it serves this prompt."""
        if self.should_run is None:
            return True
        return bool(self.should_run(**{name: ARGUMENTS[name](request) for name in self.should_run_parameters}))


def inspect_manager(target: Any, path: str, accept_ignored: tuple[str, ...] = ()) -> Manager:
    """Return the manager that `target`, the object at `path`, is. Raises ConfigurationError naming what is wrong."""
    if inspect.isclass(target):
        raise ConfigurationError(
            f"{path} is a class; make an instance of it at the end of its file and name that",
            hint=f"prompt_management = {target.__name__}()",
        )
    ignored = tuple(_overridden(target, (*CONTROLS, *LOGGING)))
    refused = [name for name in ignored if name in CONTROLS and not {name, path} & {*accept_ignored}]
    if refused:
        raise ConfigurationError(
            f"{path} overrides {', '.join(refused)}, which would change or refuse requests and does not run here; "
            f"name it in `promptmill_settings.accept_ignored` to go without it"
        )
    name, hook = _hook(target, path)
    file, line = _place(hook, target)
    where = f"{os.path.basename(file)}:{line}"
    should_run = _should_run(target)
    if should_run is not None and inspect.iscoroutinefunction(should_run):
        raise ConfigurationError(f"{path}: {SHOULD_RUN} ({where}) is `async`; make it an ordinary function")
    return Manager(
        path=path,
        kind=type(target).__name__,
        file=file,
        line=line,
        hook=hook,
        hook_name=name,
        is_async=name == ASYNC_HOOK or inspect.iscoroutinefunction(hook),
        parameters=_parameters(hook, f"{path}: {name} ({where})"),
        should_run=should_run,
        should_run_parameters=_parameters(should_run, f"{path}: {SHOULD_RUN} ({where})") if should_run else (),
        ignored=ignored,
    )


def _hook(target: Any, path: str) -> tuple[str, Callable[..., Any]]:
    """Return the hook to run and its name: the asynchronous one if it is overridden, never both."""
    for name in _overridden(target, (ASYNC_HOOK, SYNC_HOOK)):
        if callable(hook := getattr(target, name)):
            return name, hook
    for helper in _overridden(target, tuple(_HELPERS)):  # a manager built on PromptManagementBase: its hook calls these
        name = _HELPERS[helper]
        for cls in reversed(type(target).__mro__):
            if cls.__name__ == "PromptManagementBase" and name in vars(cls):
                return name, functools.partial(vars(cls)[name], target)
    raise ConfigurationError(
        f"{path} ({type(target).__name__}) has no prompt hook; give it {SYNC_HOOK} or {ASYNC_HOOK}"
    )


def _should_run(target: Any) -> Callable[..., Any] | None:
    """Return the manager's own `should_run_prompt_management`; the base class's says yes to everything."""
    found = next(_overridden(target, (SHOULD_RUN,)), None)
    return getattr(target, found) if found else None


def _overridden(target: Any, names: tuple[str, ...]) -> Iterator[str]:
    """Yield those of `names` that the object itself, or a class of its own, defines."""
    own = getattr(target, "__dict__", {})
    for name in names:
        definer = next((cls for cls in type(target).__mro__ if name in vars(cls)), None)
        if name in own or (definer is not None and definer.__module__ not in _BASES):
            yield name


def _parameters(hook: Callable[..., Any], what: str) -> tuple[str, ...]:
    """Return the names to pass by keyword. Raises ConfigurationError for what cannot be passed."""
    try:
        parameters = inspect.signature(hook).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{what}: its parameters cannot be read ({error}); write it in Python") from None
    names = []
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            return tuple(ARGUMENTS)
        required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
        if parameter.kind is parameter.POSITIONAL_ONLY and required:
            raise ConfigurationError(f"{what} takes {parameter.name!r} by position only; remove the `/`")
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            if parameter.name in ARGUMENTS:
                names.append(parameter.name)
            elif required:
                raise ConfigurationError(
                    f"{what} needs {parameter.name!r}, which is not known; give it a default, or rename it to one of "
                    f"{', '.join(ARGUMENTS)}"
                )
    return tuple(names)


def _place(hook: Callable[..., Any], target: Any) -> tuple[str, int]:
    """Return file and line of a hook, below its decorators; of its class where the hook has none."""
    function: Any = hook
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(function, "__code__", None)
    if code is not None and not function.__module__.startswith(("litellm.", "workers.prompts.")):
        return code.co_filename, code.co_firstlineno
    try:
        return inspect.getsourcefile(type(target)) or "", inspect.getsourcelines(type(target))[1]
    except (OSError, TypeError):
        return "", 0
