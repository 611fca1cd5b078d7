"""The names of LiteLLM that managers import, while LiteLLM is not installed."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes.configs import deployment
from fakes.prompts import configured, forwarded, resolve, user_module

from workers.prompts.shim import finder

BASE = """\
from litellm.integrations.prompt_management_base import PromptManagementBase, PromptManagementClient
from litellm.integrations.custom_prompt_management import CustomPromptManagement
from litellm.types.utils import StandardCallbackDynamicParams
"""


@pytest.fixture(autouse=True)
def _offered() -> None:
    assert finder.prepare() is False


@pytest.mark.parametrize("module", sorted(finder.OFFERED))
def test_an_offered_module_has_its_names(module: str) -> None:
    imported = importlib.import_module(module)
    for name in finder.OFFERED[module]:
        assert hasattr(imported, name)


def test_the_finder_is_installed_once_and_last() -> None:
    finder.prepare()
    ours = [f for f in sys.meta_path if isinstance(f, finder.ShimFinder)]
    assert len(ours) == 1
    assert sys.meta_path.index(ours[0]) > 0
    assert ours[0].find_spec("unrelated", None) is None


def test_a_name_that_is_not_offered_says_to_install_litellm() -> None:
    litellm = importlib.import_module("litellm")
    with pytest.raises(ImportError, match="'Router' in litellm; install litellm beside promptmill"):
        exec("from litellm import Router")
    with pytest.raises(AttributeError, match="install litellm beside promptmill"):
        litellm.completion  # noqa: B018 - the access is the test
    assert not hasattr(litellm, "completion")
    with pytest.raises(ModuleNotFoundError, match=r"litellm\.router; install litellm beside promptmill"):
        importlib.import_module("litellm.router")


def test_a_real_litellm_is_used_and_told_not_to_call_out(tmp_path: Path) -> None:
    real = tmp_path / "site" / "litellm"
    (real / "integrations").mkdir(parents=True)
    (real / "__init__.py").write_text("import os\nSEEN = os.environ.get('LITELLM_LOCAL_MODEL_COST_MAP')\n")
    (real / "integrations" / "__init__.py").write_text("")
    (real / "integrations" / "custom_prompt_management.py").write_text("class CustomPromptManagement: real = True\n")
    code = (
        "from workers.prompts.shim import finder\n"
        "assert finder.prepare(); import sys; assert 'litellm' not in sys.modules\n"
        "from litellm.integrations.custom_prompt_management import CustomPromptManagement as C\n"
        "import litellm; assert C.real and litellm.SEEN == 'True'; assert finder.prepare()\n"
        "assert not any(isinstance(f, finder.ShimFinder) for f in sys.meta_path)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(real.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.anyio
@pytest.mark.parametrize("base", ["PromptManagementBase", "CustomPromptManagement"])
@pytest.mark.parametrize("spec", ["prompt_spec, ", ""])
async def test_a_manager_built_on_the_compile_helper_works(tmp_path: Path, base: str, spec: str) -> None:
    source = f"""{BASE}
class M({base}):
    integration_name = "mine"
    def should_run_prompt_management(self, prompt_id, prompt_spec, dynamic_callback_params): return True
    def _compile_prompt_helper(self, prompt_id, {spec}prompt_variables, dynamic_callback_params,
                               prompt_label=None, prompt_version=None):
        return PromptManagementClient(prompt_id=prompt_id, prompt_template=[dict(role="system", content="s")],
            prompt_template_model=None, prompt_template_optional_params=dict(temperature=0, top_p=1),
            completed_messages=None)
manager = M()
"""
    settings = configured(tmp_path, source, deployments=(deployment("mine/gpt-4"), deployment()))
    body = forwarded(await resolve(settings, {"temperature": 1, "user": "u"}, model="mine/gpt-4"))
    assert body == {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}],
        "temperature": 0,
        "user": "u",
        "top_p": 1,
    }


@pytest.mark.anyio
async def test_a_manager_may_override_the_asynchronous_helper_and_call_the_base_itself(tmp_path: Path) -> None:
    source = f"""{BASE}
class M(CustomPromptManagement):
    async def async_compile_prompt_helper(self, **kw):
        self.kw = kw
        return PromptManagementClient(prompt_id="p", prompt_template=[], prompt_template_model="gpt-4",
            prompt_template_optional_params=None, completed_messages=None)
    async def async_get_chat_completion_prompt(self, *args, **kw):
        return await PromptManagementBase.async_get_chat_completion_prompt(self, *args, **kw)
manager = M()
"""
    assert forwarded(await resolve(configured(tmp_path, source), model=""))["messages"][0]["content"] == "hi"
    assert user_module().manager.kw["prompt_id"] == "1234"
    (tmp_path / "other").mkdir()
    alone = source.split("    async def async_get")[0] + "manager = M()\n"
    assert forwarded(await resolve(configured(tmp_path / "other", alone), model=""))["messages"][0]["content"] == "hi"


def test_the_base_classes_do_nothing_by_themselves() -> None:
    base: Any = importlib.import_module("litellm.integrations.custom_prompt_management").CustomPromptManagement
    manager = base(ignore_prompt_manager_model=True)
    assert manager.integration_name == "custom-prompt-management"
    assert manager.should_run_prompt_management("p", None, {}) is True
    triple = ("m", [], {})
    assert manager.get_chat_completion_prompt(*triple, "p", None, {}) == triple
    assert asyncio.run(manager.async_get_chat_completion_prompt(*triple, "p", None, {})) == triple
    assert manager.log_success_event(1, 2, 3, 4) is None
    assert asyncio.run(manager.async_pre_call_hook(1, data={})) is None
    with pytest.raises(NotImplementedError, match="_compile_prompt_helper"):
        manager._compile_prompt_helper("p")


def test_a_manager_on_the_bare_base_must_say_its_name_and_what_it_serves() -> None:
    module: Any = importlib.import_module("litellm.integrations.prompt_management_base")
    bare = module.PromptManagementBase()
    with pytest.raises(NotImplementedError, match="integration_name"):
        bare.integration_name  # noqa: B018 - the access is the test
    with pytest.raises(NotImplementedError, match="should_run"):
        bare.should_run_prompt_management("p", None, {})


def test_the_template_path_honours_the_ignore_flags_and_a_missing_id() -> None:
    module: Any = importlib.import_module("litellm.integrations.prompt_management_base")

    class M(module.PromptManagementBase):  # type: ignore[misc]
        integration_name = "mine"

        def _compile_prompt_helper(self, **kw: Any) -> Any:
            return {"prompt_template": [1], "prompt_template_model": "t", "prompt_template_optional_params": {"a": 2}}

    manager = M()
    assert manager.get_chat_completion_prompt("m", [2], {"a": 1}, None) == ("m", [2], {"a": 1})
    assert manager.get_chat_completion_prompt("m", [2], {"a": 1}, "p") == ("t", [1, 2], {"a": 2})
    flags = {"ignore_prompt_manager_model": True, "ignore_prompt_manager_optional_params": True}
    assert manager.get_chat_completion_prompt("m", [2], {"a": 1}, "p", **flags) == ("m", [1, 2], {"a": 1})
    assert asyncio.run(manager.async_get_chat_completion_prompt("m", [2], {}, "p")) == ("t", [1, 2], {"a": 2})
    assert asyncio.run(manager.async_compile_prompt_helper("p", {}))["prompt_template"] == [1]


def test_the_types_managers_make_objects_of_hold_what_they_are_given() -> None:
    types: Any = importlib.import_module("litellm.types.prompts.init_prompts")
    spec = types.PromptSpec(prompt_id="p")
    assert (spec.prompt_id, spec.litellm_params, repr(spec)) == ("p", None, "PromptSpec(prompt_id)")
    assert not hasattr(spec, "__len__")
    cache: Any = importlib.import_module("litellm.caching.caching").DualCache()
    cache.set_cache("a", 1)
    asyncio.run(cache.async_set_cache("b", 2))
    assert (cache.get_cache("a"), asyncio.run(cache.async_get_cache("b")), cache.get_cache("c")) == (1, 2, None)


def test_secrets_are_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module("litellm.secret_managers.main")
    monkeypatch.setenv("A_VARIABLE", "value")
    assert module.get_secret("os.environ/A_VARIABLE") == module.get_secret_str("A_VARIABLE") == "value"
    assert module.get_secret_str("AN_UNSET_VARIABLE", "default") == "default"
