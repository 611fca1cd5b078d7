"""Which deployments cannot be used as things are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from fakes.configs import deployment, settings

from pipeline.settings import Deployment
from workers.deployments import unusable


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (deployment(model="opanai/x"), "there is no provider 'opanai'; start `model` with one of "),
        (deployment(model="openai/x", api_key=None), "the variable OPENAI_API_KEY is not set; set OPENAI_API_KEY in "),
        (deployment(model="groq/*", api_key=None), "the variable GROQ_API_KEY is not set; "),
        (deployment(model="hosted_vllm/x"), "hosted_vllm has no address of its own; set `api_base` of the model"),
        (deployment(model="openai/"), "the model's name has parts that no model's name has; correct its `model`"),
    ],
)
def test_a_deployment_that_no_request_can_use_is_told_with_the_remedy(entry: Deployment, reason: str) -> None:
    assert unusable(settings(entry), {})[entry.id].startswith(reason)


@pytest.mark.parametrize(
    "entry",
    [
        deployment(),
        deployment(model="*", api_key=None),
        deployment(model="nobody/x", mock_response="hi"),
        deployment(model="echo/echo", api_key=None),
        deployment(model="openai/*"),
    ],
)
def test_a_deployment_that_some_request_can_use_is_not_told(entry: Deployment) -> None:
    assert unusable(settings(entry), {}) == {}


def reported(config: Path, text: str) -> subprocess.CompletedProcess[str]:
    config.write_text(text)
    command = [sys.executable, "-m", "workers.deployments", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={})


def test_the_configurations_own_variables_count(tmp_path: Path) -> None:
    text = "model_list: [{model_name: a, litellm_params: {model: openai/x}}]\n"
    done = reported(tmp_path / "config.yaml", text)
    assert len(msgspec.json.decode(done.stdout)) == 1, done.stderr
    done = reported(tmp_path / "config.yaml", text + "environment_variables: {OPENAI_API_KEY: k}\n")
    assert msgspec.json.decode(done.stdout) == {}, done.stderr


def test_a_configuration_that_cannot_be_read_is_status_2_and_a_message(tmp_path: Path) -> None:
    done = reported(tmp_path / "config.yaml", "- no\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert "not a mapping" in done.stderr
