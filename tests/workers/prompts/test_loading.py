"""Loading callbacks: by path, under private names, with errors an operator can act on."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from fakes.prompts import IMPORTS, SEED, async_hook, configured, sync_hook, user_module
from structlog.testing import capture_logs

from pipeline.errors import ConfigurationError
from pipeline.settings import Callback, PromptSettings, Settings
from workers.prompts.loading import inspect_callbacks, load_managers

UNCHANGED = "return model, messages, non_default_params"


@pytest.fixture(autouse=True)
def _imports_as_before() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith(("_promptmill_user", "helper_of_", "installed_")):
            del sys.modules[name]


def refused(settings: Settings) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_managers(settings)
    assert "Traceback" not in caught.value.message
    return caught.value.message


def method(code: str) -> str:
    """Return a manager with one more method."""
    return sync_hook(UNCHANGED).replace("\nmanager =", f"\n    {code}\nmanager =")


def test_a_file_is_loaded_under_a_private_name_that_dataclasses_and_pickle_find(tmp_path: Path) -> None:
    source = "import dataclasses, pickle\n@dataclasses.dataclass\nclass Made:\n    a: 'int' = 1\n" + sync_hook(
        UNCHANGED
    )
    load_managers(configured(tmp_path, source))
    made = user_module().Made(2)
    assert type(made).__module__ == "_promptmill_user.hooks"
    assert pickle.loads(pickle.dumps(made)) == made
    assert "hooks" not in sys.modules


def test_a_file_with_the_name_of_a_library_hides_no_library(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(sync_hook(UNCHANGED))
    load_managers(configured(tmp_path, callbacks=(Callback(path="json.manager"),)))
    import json

    assert json.loads("1") == 1
    assert sys.path[-1] == str(tmp_path)


def test_a_helper_module_beside_the_file_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "helper_of_hooks.py").write_text("WORD = 'x'\n")
    load_managers(configured(tmp_path, "import helper_of_hooks\n" + sync_hook(UNCHANGED)))
    assert user_module().helper_of_hooks.WORD == "x"


def test_a_file_in_a_directory_and_a_package_are_found_by_their_dotted_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "inner.py").write_text(sync_hook(UNCHANGED))
    (tmp_path / "sub" / "__init__.py").write_text(sync_hook(UNCHANGED))
    paths = ("sub.inner.manager", "sub.manager")
    found = load_managers(configured(tmp_path, callbacks=tuple(Callback(path=path) for path in paths)))
    assert [manager.path for manager in found.all] == list(paths)
    assert user_module("sub.inner").manager is not user_module("sub").manager


def test_two_callbacks_of_one_file_share_its_module(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(sync_hook(UNCHANGED) + "other = M()\n")
    paths = ("hooks.manager", "hooks.other")
    found = load_managers(configured(tmp_path, callbacks=tuple(Callback(path=path) for path in paths))).all
    assert type(found[0].hook.__self__) is type(found[1].hook.__self__)  # type: ignore[attr-defined]


def test_a_path_without_a_file_is_an_installed_module(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "installed_hooks.py").write_text(sync_hook(UNCHANGED))
    sys.path.append(str(site))
    found = load_managers(configured(tmp_path, callbacks=(Callback(path="installed_hooks.manager"),)))
    assert found.all[0].file == str(site / "installed_hooks.py")
    assert "installed_hooks" in sys.modules


def test_neighbours_that_run_in_one_place_share_a_leg(tmp_path: Path) -> None:
    sources = [hook(UNCHANGED) for hook in (sync_hook, sync_hook, async_hook, sync_hook)]
    assert [len(leg) for leg in load_managers(configured(tmp_path, *sources)).legs] == [2, 1, 1]


def test_a_missing_file_is_named_with_its_directory(tmp_path: Path) -> None:
    message = refused(configured(tmp_path, callbacks=(Callback(path="absent.manager"),)))
    assert f"absent.py not found in {tmp_path}" in message


def test_a_missing_object_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(sync_hook(UNCHANGED))
    message = refused(configured(tmp_path, callbacks=(Callback(path="hooks.absent"),)))
    assert "hooks.py has no 'absent'; it has manager" in message
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert "no object" in refused(configured(tmp_path, callbacks=(Callback(path="empty.absent"),)))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import os\nimport absent_library\n", "hooks.py:2: ModuleNotFoundError: No module named 'absent_library'"),
        ("def f():\n    raise ValueError('bad')\nf()\n", "hooks.py:2: ValueError: bad"),
        ("x = 1\nx = = 2\n", "hooks.py:2: SyntaxError: invalid syntax"),
        ("import sys\nsys.exit('no')\n", "hooks.py:2: SystemExit: no"),
        ("from litellm import Router\n", "install litellm beside promptmill"),
    ],
)
def test_a_file_that_does_not_import_is_told_by_its_file_and_line(tmp_path: Path, source: str, words: str) -> None:
    assert words in refused(configured(tmp_path, source))
    assert "_promptmill_user.hooks" not in sys.modules


@pytest.mark.parametrize(
    ("line", "words"), [("raise OSError('x')", "OSError: x"), ("import absent_library", "absent_l")]
)
def test_an_installed_module_that_does_not_import_is_told_by_its_name(tmp_path: Path, line: str, words: str) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "installed_broken.py").write_text(line + "\n")
    sys.path.append(str(site))
    message = refused(configured(tmp_path, callbacks=(Callback(path="installed_broken.manager"),)))
    assert words in message
    assert "installed_broken" in message


@pytest.mark.parametrize("name", ["installed_interrupted", "hooks"])
def test_an_operators_interrupt_while_loading_is_an_interrupt(tmp_path: Path, name: str) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for file in (site / "installed_interrupted.py", tmp_path / "hooks.py"):
        file.write_text("raise KeyboardInterrupt\n")
    sys.path.append(str(site))
    with pytest.raises(KeyboardInterrupt):
        load_managers(configured(tmp_path, callbacks=(Callback(path=f"{name}.manager"),)))


def test_a_path_that_names_a_class_is_refused_with_the_line_to_write(tmp_path: Path) -> None:
    settings = configured(tmp_path, sync_hook(UNCHANGED), callbacks=(Callback(path="hooks.M", file="c.yaml", line=7),))
    with pytest.raises(ConfigurationError) as caught:
        load_managers(settings)
    assert caught.value.message.startswith("c.yaml:7: hooks.M is a class")
    assert caught.value.hint == "prompt_management = M()"


@pytest.mark.parametrize("body", ["pass", "def log_success_event(self, *a): pass", "get_chat_completion_prompt = 5"])
def test_an_object_without_a_prompt_hook_is_refused(tmp_path: Path, body: str) -> None:
    message = refused(configured(tmp_path, IMPORTS + f"class M(CustomPromptManagement):\n    {body}\nmanager = M()\n"))
    assert "hooks.manager (M) has no prompt hook" in message


def test_a_hook_that_needs_a_parameter_we_do_not_know_is_refused_naming_it(tmp_path: Path) -> None:
    source = IMPORTS + "class M:\n    def get_chat_completion_prompt(self, model, tenant): ...\nmanager = M()\n"
    message = refused(configured(tmp_path, source))
    assert "config.yaml:7: hooks.manager: get_chat_completion_prompt (hooks.py:4) needs 'tenant'" in message
    assert "prompt_variables" in message


def test_a_should_run_that_needs_a_parameter_we_do_not_know_is_refused_naming_it(tmp_path: Path) -> None:
    message = refused(configured(tmp_path, method("def should_run_prompt_management(self, pid): ...")))
    assert "should_run_prompt_management" in message
    assert "'pid'" in message


def test_an_asynchronous_should_run_is_refused(tmp_path: Path) -> None:
    assert "async" in refused(configured(tmp_path, method("async def should_run_prompt_management(self): ...")))


def test_a_positional_only_parameter_is_refused(tmp_path: Path) -> None:
    source = "class M:\n    def get_chat_completion_prompt(self, model, /, messages): ...\nmanager = M()\n"
    assert "'model' by position only" in refused(configured(tmp_path, source))


def test_a_hook_without_a_readable_signature_is_refused(tmp_path: Path) -> None:
    message = refused(configured(tmp_path, "class M:\n    get_chat_completion_prompt = dict\nmanager = M()\n"))
    assert "cannot be read" in message


@pytest.mark.parametrize(
    "hook", ["async_pre_call_hook", "async_moderation_hook", "async_filter_deployments", "async_post_call_success_hook"]
)
def test_a_control_that_does_not_run_here_ends_the_start_until_it_is_accepted(tmp_path: Path, hook: str) -> None:
    source = method(f"async def {hook}(self, *a, **k): ...")
    message = refused(configured(tmp_path, source))
    assert hook in message
    assert "accept_ignored" in message
    for accepted in (hook, "hooks.manager"):
        settings = configured(tmp_path, source, prompts=PromptSettings(accept_ignored=(accepted,)))
        with capture_logs() as logs:
            assert load_managers(settings).all[0].ignored == (hook,)
        assert logs == [
            {
                "event": "hook does not run here",
                "log_level": "warning",
                "source": "prompts",
                "callback": "hooks.manager",
                "hook": hook,
                "control": True,
            }
        ]
    refused(configured(tmp_path, source, prompts=PromptSettings(accept_ignored=("another_hook",))))


def test_logging_hooks_warn_and_built_in_callbacks_too(tmp_path: Path) -> None:
    settings = configured(tmp_path, method("def log_success_event(self, *a): ..."))
    built_in = Callback(path="langfuse")
    with capture_logs() as logs:
        found = load_managers(msgspec.structs.replace(settings, callbacks=(*settings.callbacks, built_in)))
    assert [(entry["callback"], entry.get("hook"), entry["log_level"]) for entry in logs] == [
        ("langfuse", None, "warning"),
        ("hooks.manager", "log_success_event", "warning"),
    ]
    assert len(found.all) == 1


@pytest.mark.parametrize("name", ["pipeline", "workers", "ingress"])
def test_a_user_file_with_the_name_of_our_package_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("")
    assert f"{name}.py" in refused(configured(tmp_path, sync_hook(UNCHANGED)))


def test_the_facts_about_a_callback_are_those_the_first_screen_shows(tmp_path: Path) -> None:
    (tmp_path / "custom_prompt.py").write_text(SEED)
    settings = configured(tmp_path, method("def should_run_prompt_management(self, prompt_id, prompt_spec): ..."))
    settings = msgspec.structs.replace(
        settings, callbacks=(Callback(path="custom_prompt.prompt_management"), *settings.callbacks)
    )
    first, second = inspect_callbacks(settings)
    assert msgspec.to_builtins(first) == {
        "path": "custom_prompt.prompt_management",
        "kind": "MyCustomPromptManagement",
        "file": str(tmp_path / "custom_prompt.py"),
        "line": 7,
        "hook": "get_chat_completion_prompt",
        "is_async": False,
        "parameters": (
            "model",
            "messages",
            "non_default_params",
            "prompt_id",
            "prompt_variables",
            "dynamic_callback_params",
        ),
        "should_run": 0,
        "ignored": (),
    }
    assert second.should_run == 2
    assert len(second.parameters) == 13


CONFIG = """\
model_list:
  - model_name: gpt-4
    litellm_params: {model: openai/gpt-4, api_key: os.environ/OPENAI_API_KEY}
litellm_settings:
  callbacks: custom_prompt.prompt_management
"""


def described(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workers.prompts.describe", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_facts_are_printed_by_a_process_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "custom_prompt.py").write_text(SEED)
    done = described(tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)[0]["path"] == "custom_prompt.prompt_management"


def test_a_callback_that_cannot_be_used_is_status_2_and_a_message(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "custom_prompt.py").write_text("import absent_library\nprompt_management = 1\n")
    done = described(tmp_path / "config.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "custom_prompt.py:1: ModuleNotFoundError" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_manager_without_source_is_told_by_its_class(tmp_path: Path) -> None:
    hook = "staticmethod(functools.partial(print))"
    source = f"import functools\nM = type('M', (), {{'get_chat_completion_prompt': {hook}}})\n"
    found = load_managers(configured(tmp_path, source + "M.__module__ = 'nowhere'\nmanager = M()\n")).all[0]
    assert (found.kind, found.file, found.line) == ("M", "", 0)
