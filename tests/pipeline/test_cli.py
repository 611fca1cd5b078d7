"""The command line: finding commands, exit codes, and words instead of tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from fakes.object_servers import BUCKET, VARIABLES, run_object_server

from pipeline import cli, plugins
from pipeline.errors import ConfigurationError, PipelineError, TransportUnavailable

CONFIG = """
model_list:
  - model_name: gpt-4
    litellm_params: {model: echo/echo}
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("REDIS_URL", "PROMPTMILL_CONFIG", "PROMPTMILL_DATA_DIR", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_help_lists_every_command_and_the_exit_codes_without_importing_one() -> None:
    script = (
        "import sys; from pipeline import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in sys.modules if m in ('redis', 'rich', 'workers', 'ingress', 'pipeline.supervise')])"
    )
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    for name in ("up", "demo", "check", "status", "dead", "ingress", "worker", "prompt"):
        assert f"\n  {name} " in said
    assert "Exit codes: 0 ok, 1 findings, 2 " in said
    assert said.splitlines()[-1] == "[]"


def test_every_command_that_is_listed_can_be_imported_and_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    context = click.Context(cli.promptmill)
    for name in cli.promptmill.list_commands(context):
        command = cli.promptmill.get_command(context, name)
        assert command is not None, name
        if name in cli._OURS:
            assert command.short_help == cli._OURS[name][1]


def test_a_word_that_is_no_command_suggests_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("xstatus") == 2
    assert "did you mean 'status'?" in capsys.readouterr().err
    assert run("xyzzy") == 2
    assert "there is up, demo, check" in capsys.readouterr().err


def test_options_without_a_command_are_those_of_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", "none.yaml", "--detailed_debug") == 2
    assert "none.yaml" in capsys.readouterr().err
    assert run("--num_workers", "2", "--help") == 0
    assert "--scale NAME=N" in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("promptmill ")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigurationError("wrong", hint="right it"), 2, "promptmill: wrong\n  right it\n"),
        (TransportUnavailable("away"), 3, "promptmill: away\n"),
        (PipelineError("other"), 1, "promptmill: other\n"),
        (KeyboardInterrupt(), 130, ""),
        (click.UsageError("usage"), 2, "Error: usage\n"),
    ],
)
def test_what_can_go_wrong_is_told_in_words(
    error: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli.promptmill, "main", fail)
    assert run() == status
    assert capsys.readouterr().err == said


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = "import sys; from pipeline import cli\ncli.promptmill.main = lambda *a, **k: print(1 / 0)\n"
    script = script.replace("print(1 / 0)", "(_ for _ in ()).throw(BrokenPipeError())") + "cli.main([])"
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is full")
def test_an_output_without_space_is_told_in_words() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from pipeline import cli; cli.main(['--help'])"],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 1
    assert done.stderr == b"promptmill: there is no space for the output; make room, or send it elsewhere\n"


def test_an_entry_point_that_is_no_command_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("odd", "os:getcwd", plugins.GROUP)
    monkeypatch.setattr(plugins, "commands", lambda: {"odd": entry})
    assert cli.promptmill.get_command(click.Context(cli.promptmill), "odd") is None
    assert cli.promptmill.get_command(click.Context(cli.promptmill), "none") is None


def test_check_says_what_a_configuration_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert run("check", "-c", "config.yaml") == 0
    said = capsys.readouterr().out
    assert "gpt-4 -> echo/echo (line 3)" in said
    assert "any (loopback only)" in said


def test_check_reports_findings_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Procfile").write_text("web: gunicorn app\n")
    (tmp_path / "mine.py").write_text(
        "from litellm.integrations.custom_prompt_management import CustomPromptManagement\n"
        "class Mine(CustomPromptManagement):\n"
        "    def get_chat_completion_prompt(self, *args, **kwargs): ...\n"
        "mine = Mine()\n"
    )
    monkeypatch.setenv("GATEWAY_KEY", "sk-a-long-and-random-one")
    (tmp_path / "config.yaml").write_text(
        CONFIG
        + "  - {model_name: real, litellm_params: {model: openai/x, api_key: os.environ/OPENAI_API_KEY}}\n"
        + "general_settings: {master_key: os.environ/GATEWAY_KEY}\n"
        + "litellm_settings: {callbacks: mine.mine, request_timeout: 20, nonsense: 1}\n"
    )
    assert run("check", "-c", "config.yaml") == 1
    said = capsys.readouterr().out
    for text in (
        "openai/x is disabled",
        "nonsense",
        "Procfile is not run",
        "manager        mine.mine",
        "key            master",
    ):
        assert text in said
    assert run("check", "-c", "config.yaml", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["managers"][0]["path"] == "mine.mine"
    assert len(found["findings"]) >= 3
    assert "sk-a-long" not in said + json.dumps(found)


def test_check_knows_which_providers_there_are_and_their_own_variables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(
        CONFIG
        + "  - {model_name: typo, litellm_params: {model: opanai/x}}\n"
        + "  - {model_name: own, litellm_params: {model: openai/x}}\n"
    )
    assert run("check", "-c", "config.yaml") == 1
    said = capsys.readouterr().out
    assert "config.yaml:5: typo -> opanai/x is disabled: there is no provider 'opanai'; start `model` with" in said
    assert "config.yaml:6: own -> openai/x is disabled: the variable OPENAI_API_KEY is not set" in said
    assert said.count("is disabled") == 2


def test_check_asks_the_object_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    with run_object_server() as server:
        options = json.dumps(server.storage_options)
        text = f"{CONFIG}promptmill_settings: {{storage: {BUCKET}, storage_options: {options}}}\n"
        (tmp_path / "config.yaml").write_text(text)
        assert run("check", "-c", "config.yaml") == 0
        assert f"storage        {BUCKET}\n" in capsys.readouterr().out
        server.keeps_conditions = False
        assert run("check", "-c", "config.yaml") == 1
    said = capsys.readouterr().out
    assert "it ignores If-None-Match" in said
    assert VARIABLES["STORE_SECRET"] not in said


def test_check_ends_with_status_2_for_what_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG + "litellm_settings: {callbacks: none.none}\n")
    assert run("check", "-c", "config.yaml") == 2
    assert "none" in capsys.readouterr().err
