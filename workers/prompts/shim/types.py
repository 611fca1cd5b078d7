"""The types that managers written for LiteLLM name in annotations, and the few they make objects of."""

from __future__ import annotations

import logging
import os
from typing import Any, TypedDict

AllMessageValues = dict[str, Any]
"""A chat message; LiteLLM's is a union of TypedDicts, which is the same at run time."""


class ChatCompletionMessage(TypedDict, total=False):
    """A chat message by its fields."""

    role: str
    content: Any
    name: str
    tool_calls: list[Any]
    tool_call_id: str


class StandardCallbackDynamicParams(TypedDict, total=False):
    """Per-request callback settings; clients may not send them, so hooks get an empty one."""

    turn_off_message_logging: bool | None
    litellm_disabled_callbacks: list[str] | None


class Record:
    """An object of named fields, for types that managers read or make but do not validate with."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(vars(self))})"


class PromptLiteLLMParams(Record):
    """Where a registered prompt comes from."""


class PromptInfo(Record):
    """How a registered prompt came to be."""


class PromptSpec(Record):
    """A registered prompt; hooks get None, as for every manager listed under `callbacks`."""


class UserAPIKeyAuth(Record):
    """The key behind a request, for annotations of hooks that do not run here."""


class Logging(Record):
    """Stand-in for the request's logging object: its ids, and details that nobody logs."""


class DualCache:
    """A dictionary in this process, for managers that keep values in LiteLLM's cache class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._values: dict[str, Any] = {}

    def get_cache(self, key: str, *args: Any, **kwargs: Any) -> Any:
        """Return the value under `key`, or None."""
        return self._values.get(key)

    def set_cache(self, key: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Keep `value` under `key`."""
        self._values[key] = value

    async def async_get_cache(self, key: str, *args: Any, **kwargs: Any) -> Any:
        """Return the value under `key`, or None."""
        return self._values.get(key)

    async def async_set_cache(self, key: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Keep `value` under `key`."""
        self._values[key] = value


verbose_logger = logging.getLogger("LiteLLM")
verbose_proxy_logger = logging.getLogger("LiteLLM Proxy")
verbose_router_logger = logging.getLogger("LiteLLM Router")


def get_secret_str(secret_name: str, default_value: str | None = None) -> str | None:
    """Return an environment variable, named plainly or as `os.environ/NAME`."""
    return os.environ.get(secret_name.removeprefix("os.environ/"), default_value)
