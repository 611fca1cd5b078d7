"""The import finder that offers `litellm` while the real one is not installed."""

from __future__ import annotations

import dis
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final

from workers.prompts.shim import classes, types

REMEDY: Final = "install litellm beside promptmill, whose own classes are then used"

_MESSAGES: Final = dict.fromkeys(
    (
        "ChatCompletionAssistantMessage",
        "ChatCompletionDeveloperMessage",
        "ChatCompletionSystemMessage",
        "ChatCompletionToolMessage",
        "ChatCompletionUserMessage",
    ),
    types.ChatCompletionMessage,
)

OFFERED: Final[Mapping[str, Mapping[str, Any]]] = {
    "litellm": {"callbacks": [], "set_verbose": False, "drop_params": False},
    "litellm._logging": {
        "verbose_logger": types.verbose_logger,
        "verbose_proxy_logger": types.verbose_proxy_logger,
        "verbose_router_logger": types.verbose_router_logger,
    },
    "litellm.caching": {},
    "litellm.caching.caching": {"DualCache": types.DualCache},
    "litellm.integrations": {},
    "litellm.integrations.custom_logger": {"CustomLogger": classes.CustomLogger},
    "litellm.integrations.custom_prompt_management": {"CustomPromptManagement": classes.CustomPromptManagement},
    "litellm.integrations.prompt_management_base": {
        "PromptManagementBase": classes.PromptManagementBase,
        "PromptManagementClient": classes.PromptManagementClient,
    },
    "litellm.litellm_core_utils": {},
    "litellm.litellm_core_utils.litellm_logging": {"Logging": types.Logging},
    "litellm.proxy": {},
    "litellm.proxy._types": {"UserAPIKeyAuth": types.UserAPIKeyAuth},
    "litellm.secret_managers": {},
    "litellm.secret_managers.main": {"get_secret": types.get_secret_str, "get_secret_str": types.get_secret_str},
    "litellm.types": {},
    "litellm.types.llms": {},
    "litellm.types.llms.openai": {"AllMessageValues": types.AllMessageValues, **_MESSAGES},
    "litellm.types.prompts": {},
    "litellm.types.prompts.init_prompts": {
        "PromptInfo": types.PromptInfo,
        "PromptLiteLLMParams": types.PromptLiteLLMParams,
        "PromptSpec": types.PromptSpec,
    },
    "litellm.types.utils": {"StandardCallbackDynamicParams": types.StandardCallbackDynamicParams},
}
"""Every module offered, and its names."""


class ShimFinder(MetaPathFinder, Loader):
    """Finds and makes the modules of `OFFERED`. It stands last on `sys.meta_path`: a real LiteLLM always wins."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return a spec for an offered module. Raises ModuleNotFoundError for another part of LiteLLM."""
        if name in OFFERED:
            package = any(other.startswith(f"{name}.") for other in OFFERED)
            return ModuleSpec(name, self, origin="promptmill", is_package=package)
        if name.startswith("litellm."):
            raise ModuleNotFoundError(f"promptmill does not offer {name}; {REMEDY}", name=name)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave making the module to the import system."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module with its names."""
        offered = OFFERED[module.__name__]
        vars(module).update(
            {name: list(value) if isinstance(value, list) else value for name, value in offered.items()}
        )
        vars(module)["__getattr__"] = _refuser(module.__name__)


def prepare() -> bool:
    """
    Make `import litellm` work; return whether it is the real one.

    The real one is told to read its price list from its own files: it calls out for it otherwise.
    """
    if _installed():
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        return True
    if not any(isinstance(finder, ShimFinder) for finder in sys.meta_path):
        sys.meta_path.append(ShimFinder())
    return False


def is_ours(loader: object) -> bool:
    """Whether a module with this loader is one of the stand-ins."""
    return isinstance(loader, ShimFinder)


def _installed() -> bool:
    """Whether the real LiteLLM can be imported, without importing it: that costs seconds."""
    loaded = sys.modules.get("litellm")
    if loaded is not None:
        return not is_ours(getattr(loaded.__spec__, "loader", None))
    found = PathFinder.find_spec("litellm")
    return found is not None and found.origin is not None  # a mere folder of that name has no origin


def _refuser(module: str) -> Any:
    """Return a module's `__getattr__` that says what to do about a name the module does not have."""

    def refuse(name: str) -> Any:
        message = f"promptmill offers no {name!r} in {module}; {REMEDY}"
        caller = sys._getframe(1)
        # `from m import x` turns an AttributeError into an ImportError without our words, so it gets one with them.
        if not name.startswith("__") and caller.f_code.co_code[caller.f_lasti] == dis.opmap["IMPORT_FROM"]:
            raise ImportError(message, name=module)
        raise AttributeError(message)

    return refuse
