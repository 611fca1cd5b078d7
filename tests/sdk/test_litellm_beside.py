"""promptmill installed where LiteLLM is: the manager is of LiteLLM's own class, and works all the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import page
from fakes.environments import REQUIREMENTS, ROOT, Environments, client_variables
from fakes.gateways import environment, start_gateway
from fakes.upstream import run_upstream_in_thread

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(400)]

ORIGIN = """
import inspect, os
from litellm.integrations.custom_prompt_management import CustomPromptManagement
from custom_prompt import MyCustomPromptManagement

class Origin(MyCustomPromptManagement):
    def get_chat_completion_prompt(self, model, messages, **more):
        facts = [inspect.getfile(CustomPromptManagement), os.environ.get("LITELLM_LOCAL_MODEL_COST_MAP")]
        return model, [{"role": "system", "content": fact} for fact in facts], {}

origin = Origin()
"""


def variables(site: str) -> dict[str, str]:
    """Return what makes an interpreter find promptmill in `site`; it keeps the byte code of LiteLLM, which is much."""
    return {"PYTHONPATH": site, "PYTHONDONTWRITEBYTECODE": ""}


@pytest.fixture(scope="module")
def installed(environments: Environments, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return LiteLLM's interpreter, and the directory that a wheel of this checkout is unpacked into."""
    python = environments.python("litellm")
    # The first import compiles thousands of files: not while a gateway is expected to start.
    load = [str(python), "-c", "from litellm.integrations import custom_prompt_management"]
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    subprocess.run(load, check=True, capture_output=True, env=client_variables() | local)
    directory: Path = tmp_path_factory.mktemp("installed")
    build = f"from hatchling.build import build_wheel; print(build_wheel({str(directory)!r}))"
    built = subprocess.run([sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True, check=True)
    wheel, target = directory / built.stdout.split()[-1], directory / "site"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-compile", "--target", str(target), str(wheel)], check=True, capture_output=True)
    return python, str(target)


def test_the_environment_has_all_that_promptmill_needs() -> None:
    needed = set(re.findall(r"^[\w-]+==\S+", (ROOT / "requirements" / "runtime.txt").read_text(), re.MULTILINE))
    pinned = set(re.findall(r"^[\w-]+==\S+", (REQUIREMENTS / "litellm.txt").read_text(), re.MULTILINE))
    assert needed <= pinned, "compile tests/sdk/requirements/litellm.txt again; its README.md says how"


def test_the_page_works_beside_litellm(installed: tuple[Path, str], tmp_path: Path) -> None:
    python, site = installed
    page.copy_files(tmp_path)
    more = {"OPENAI_API_KEY": page.UPSTREAM_KEY, **variables(site)}
    with run_upstream_in_thread() as upstream:
        config = page.config(upstream.url)
        with start_gateway(tmp_path, config=config, variables=more, python=str(python)) as gateway:
            answer = gateway.ask(model="gemini-1.5-pro", prompt_id="1234", prompt_cache_key="theirs")
        assert answer == "2 messages"
        (received,) = upstream.requests
    assert received.json == {
        "model": "gemini-1.5-pro-002",
        "messages": page.TRANSFORMED,
        "prompt_cache_key": "theirs",
    }
    assert received.headers["authorization"] == f"Bearer {page.UPSTREAM_KEY}"


def test_the_classes_are_litellms_own_when_it_is_there(installed: tuple[Path, str], tmp_path: Path) -> None:
    python, site = installed
    page.copy_files(tmp_path)
    (tmp_path / "origin.py").write_text(ORIGIN)
    command = [str(python), "-P", "-m", "pipeline", "prompt", "test", "origin.py:origin", "--id", "x", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(**variables(site)), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    trial: dict[str, Any] = json.loads(done.stdout)
    file, cost_map = [message["content"] for message in trial["after"]["messages"]]
    assert Path(file).is_relative_to(python.parent.parent)
    assert cost_map == "True"  # or importing it would fetch one from the network
