"""What `up` hands down is what its processes run on, whatever the file says by then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline import configuration, handover
from pipeline.errors import ConfigurationError
from pipeline.settings import Settings
from pipeline.startup import Source

WHOLE = """
model_list:
  - model_name: gpt-4
    litellm_params:
      model: openai/gpt-4
      api_key: sk-upstream
      timeout: 5
      temperature: 0.5
      extra_headers: {X-Team: a}
      extra_body: {list: [1, {deep: null}], flag: true}
      prompt_id: p
      prompt_version: 3
      prompt_variables: {names: [Ada, 1.5]}
litellm_settings: {callbacks: [hook.manager], unknown_thing: 1}
general_settings: {master_key: os.environ/MASTER}
router_settings: {model_group_alias: {fast: gpt-4}}
environment_variables: {HELLO: there}
promptmill_settings: {keys: {one: [sk-one, os.environ/TWO]}, redis_url: os.environ/URL, grace: 3}
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "hook.py").write_text("manager = 1\n")
    (tmp_path / "config.yaml").write_text(WHOLE)
    return configuration.load(tmp_path / "config.yaml", {"MASTER": "m", "TWO": "t", "URL": "redis://x"})


def inherited(settings: Settings, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with handover.give(settings, directory) as file:
        monkeypatch.setenv(handover.VARIABLE, str(os.dup(file.fileno())))


def test_settings_arrive_as_they_were_read(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    inherited(settings, tmp_path, monkeypatch)
    assert handover.take() == settings
    assert handover.VARIABLE not in os.environ
    assert handover.take() is None
    assert {path.name for path in tmp_path.iterdir()} == {"hook.py", "config.yaml"}


def test_a_process_that_was_given_settings_does_not_look_into_the_file(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELLO", "")  # so that it is taken back after the test
    monkeypatch.setenv("PROMPTMILL_CONFIG", str(tmp_path / "config.yaml"))
    inherited(settings, tmp_path, monkeypatch)
    (tmp_path / "config.yaml").write_text("model_list: [")
    source = Source(None, None)
    assert not source.is_replaced
    assert source.load() == settings
    assert source.is_replaced
    assert os.environ["HELLO"] == "there"
    other = tmp_path / "other.yaml"
    other.write_text("model_list: []\n")
    inherited(settings, tmp_path, monkeypatch)
    assert Source(str(other), None).load().source == str(other), "unless it was told to, on its command line"


@pytest.mark.parametrize("number", ["none", "9999"])
def test_a_number_that_is_no_file_of_settings_is_refused(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(handover.VARIABLE, number)
    with pytest.raises(ConfigurationError, match=f"{handover.VARIABLE}={number} does not hold settings"):
        handover.take()


def test_a_directory_without_room_is_told(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written"):
        handover.give(settings, tmp_path / "nowhere")
