"""`promptmill prompt test`: a manager tried on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from fakes.prompts import SEED, async_hook, sync_hook, user_module

from workers.prompt_command import prompt

HI = '[{"role": "user", "content": "hi"}]'


@pytest.fixture(autouse=True)
def _path_as_before() -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path


def run(tmp_path: Path, source: str, *arguments: str, name: str = "manager", prompt_id: str = "1234") -> Result:
    (tmp_path / "hooks.py").write_text(source)
    return CliRunner().invoke(prompt, ["test", f"{tmp_path}/hooks.py:{name}", "--id", prompt_id, *arguments])


def decoded(result: Result) -> Any:
    return msgspec.json.decode(result.stdout)


def test_it_shows_the_request_before_and_after(tmp_path: Path) -> None:
    result = run(tmp_path, SEED, "--messages", HI, "--model", "gpt-4", name="prompt_management")
    assert result.exit_code == 0, result.output
    assert "hooks.prompt_management (get_chat_completion_prompt): changed" in result.stdout
    before, _, after = result.stdout.partition("after")
    assert '"prompt_id": "1234"' in before
    assert "Be a good Bot!" in after
    assert '"prompt_id"' not in after
    unchanged = run(tmp_path, SEED, "--messages", HI, name="prompt_management", prompt_id="other")
    assert ": unchanged" in unchanged.stdout


def test_it_shows_what_changed_as_a_diff(tmp_path: Path) -> None:
    source = sync_hook("return 'claude', messages, {'temperature': 0.5}")
    result = run(tmp_path, source, "--messages", HI, "--model", "gpt-4", "--param", "temperature=0.9", "--diff")
    assert result.exit_code == 0
    for line in ('-  "model": "gpt-4",', '+  "model": "claude",', '-  "temperature": 0.9,', '+  "temperature": 0.5'):
        assert line in result.stdout.splitlines()


def test_it_prints_json_for_other_programs(tmp_path: Path) -> None:
    messages = tmp_path / "messages.json"
    messages.write_text(HI)
    options = ["--var", "name=Ada", "--var", "eq=a=b", "--version", "3", "--label", "prod", "--param", "stop=[1]"]
    source = async_hook("return model, messages, None")
    result = run(tmp_path, source, "--messages", f"@{messages}", *options, "--json")
    assert decoded(result) == {
        "manager": "hooks.manager",
        "hook": "async_get_chat_completion_prompt",
        "changed": False,
        "before": {
            "messages": [{"role": "user", "content": "hi"}],
            "stop": [1],
            "prompt_id": "1234",
            "prompt_variables": {"name": "Ada", "eq": "a=b"},
        },
        "after": {"messages": [{"role": "user", "content": "hi"}], "stop": [1]},
    }
    seen = user_module().manager.seen
    assert seen["prompt_variables"] == {"name": "Ada", "eq": "a=b"}
    assert (seen["prompt_version"], seen["prompt_label"], seen["model"]) == ("3", "prod", "")


def test_a_manager_that_fails_or_declines_is_status_1(tmp_path: Path) -> None:
    source = sync_hook("raise ValueError('no such id')")
    failure = run(tmp_path, source)
    assert failure.exit_code == 1
    assert "hooks.py:6" in failure.stderr
    as_json = run(tmp_path, source, "--json")
    assert as_json.exit_code == 1
    assert decoded(as_json)["error"]["code"] == "prompt_manager_error"
    declines = sync_hook("return 1").replace(
        "\nmanager =", "\n    def should_run_prompt_management(self, prompt_id, **_): return False\nmanager ="
    )
    (tmp_path / "second").mkdir()
    assert "no prompt manager serves" in run(tmp_path / "second", declines).stderr


def test_a_manager_that_overruns_is_status_1(tmp_path: Path) -> None:
    result = run(tmp_path, async_hook("await asyncio.sleep(60)"), "--timeout", "0.1")
    assert result.exit_code == 1
    assert "hooks.py:6" in result.stderr


def test_a_control_on_the_object_does_not_keep_it_from_being_tried(tmp_path: Path) -> None:
    source = sync_hook("return model, messages, None").replace(
        "\nmanager =", "\n    async def async_pre_call_hook(self, *a): ...\nmanager ="
    )
    assert run(tmp_path, source).exit_code == 0


@pytest.mark.parametrize(
    ("source", "name", "words"),
    [
        ("import absent_library\n", "manager", "hooks.py:1: ModuleNotFoundError"),
        ("x = 1\n", "manager", "has no 'manager'"),
        (SEED, "MyCustomPromptManagement", "prompt_management = MyCustomPromptManagement()"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_status_2(tmp_path: Path, source: str, name: str, words: str) -> None:
    result = run(tmp_path, source, name=name)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--messages", "{"],
        ["--messages", "{}"],
        ["--messages", "[1]"],
        ["--messages", "@absent.json"],
        ["--var", "novalue"],
        ["--param", "temperature"],
        ["--param", "user=text"],
    ],
)
def test_wrong_usage_is_status_2(tmp_path: Path, arguments: list[str]) -> None:
    result = run(tmp_path, SEED, *arguments, name="prompt_management")
    assert result.exit_code == 2
    assert "Invalid value" in result.stderr


@pytest.mark.parametrize("target", ["hooks.py", "absent.py:manager", ":manager"])
def test_a_target_that_is_no_file_and_object_is_status_2(target: str) -> None:
    assert CliRunner().invoke(prompt, ["test", target, "--id", "1"]).exit_code == 2


def test_the_help_documents_the_exit_status() -> None:
    text = CliRunner().invoke(prompt, ["test", "--help"]).stdout
    assert "Exit status:" in text
    assert "2  wrong usage" in text


def test_a_file_that_is_not_python_is_status_2(tmp_path: Path) -> None:
    (tmp_path / "hooks.txt").write_text("")
    result = CliRunner().invoke(prompt, ["test", f"{tmp_path}/hooks.txt:manager", "--id", "1"])
    assert result.exit_code == 2
    assert "name one that ends in .py" in result.stderr
