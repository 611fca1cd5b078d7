"""What `promptmill check` reports."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from fakes.config_files import ConfigFiles

from pipeline.check import report

TEXT = """\
model_list:
  - model_name: gpt-4
    litellm_params: {model: openai/gpt-4, api_key: os.environ/OPENAI_API_KEY, prompt_id: p}
  - model_name: gpt-4
    litellm_params: {model: azure/gpt-4, api_key: sk-secret, api_base: os.environ/BASE, prompt_id: p}
  - model_name: local
    litellm_params: {model: local, api_base: "http://localhost:1", api_key: os.environ/OWN}
environment_variables: {OWN: k}
litellm_settings: {callbacks: hook.manager, request_timeout: 20}
router_settings: {model_group_alias: {fast: gpt-4}}
general_settings: {master_key: sk-secret-master}
promptmill_settings:
  {keys: {team: sk-secret-team}, redis_url: "redis://:secret@h", lease: 9, typo: 1, prompt_slots: 64,
   max_transfers: 8, batch_window: 100}
"""


@pytest.fixture
def files(tmp_path: Path) -> ConfigFiles:
    found = ConfigFiles(tmp_path)
    found.write("raise SystemExit\nmanager = 1\n", "hook.py")
    return found


def test_says_what_was_understood_and_no_secret(files):
    settings = files.load(TEXT)
    found = report(settings, {})
    first, second = found.models[0].deployments
    unset = "is not set; set it where promptmill starts"
    assert [model.name for model in found.models] == ["gpt-4", "local"]
    assert (first.id, first.model, first.line, first.prompt_id) == (settings.deployments[0].id, "openai/gpt-4", 2, "p")
    assert first.disabled == f"the variable OPENAI_API_KEY {unset}"
    assert second.disabled == f"the variable BASE {unset}"
    assert found.models[1].deployments[0].disabled == ""
    assert found.aliases == {"fast": "gpt-4"}
    assert [(callback.path, callback.line) for callback in found.callbacks] == [("hook.manager", 9)]
    assert found.keys == ("master", "team")
    assert found.limits == {
        "files.max_transfers": 8,
        "batches.batch_window": 100,
        "router.timeout": 20.0,
        "transport.url": "Secret(***)",
        "transport.lease": 9.0,
    }
    assert [notice.line for notice in found.notices] == [5, 13]
    assert found.digest == settings.digest
    assert b"secret" not in msgspec.json.encode(found)


def test_a_deployment_whose_variables_are_set_is_not_disabled(files):
    environment = {"OPENAI_API_KEY": "k", "BASE": "http://a.example"}
    found = report(files.load(TEXT, environment), environment)
    assert {d.disabled for model in found.models for d in model.deployments} == {""}


def test_an_empty_variable_counts_as_unset(files):
    environment = {"OPENAI_API_KEY": "", "BASE": "http://a.example"}
    found = report(files.load(TEXT, environment), environment)
    assert found.models[0].deployments[0].disabled
