"""Every example runs: its configuration on a real gateway, its clients in environments of their own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import page
from fakes.environments import ROOT, Environments, client_variables
from fakes.gateways import Gateway, promptmill, start_gateway
from fakes.upstream import run_upstream_in_thread

pytestmark = [pytest.mark.processes, pytest.mark.timeout(400)]

EXAMPLES = ROOT / "examples"
NAMES = ["openai_prompt_object", "prompt_service", "quick_start", "several_managers"]
HELLO = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def environments() -> Iterator[Environments]:
    made = Environments(["openai-3", "langchain"])
    yield made
    made.close()


@contextmanager
def running(name: str, directory: Path, **variables: str) -> Iterator[Gateway]:
    """Run an example from a copy, for a gateway keeps its data beside the configuration."""
    copy = shutil.copytree(EXAMPLES / name, directory / name)
    with start_gateway(copy, config=(copy / "config.yaml").read_text(), variables=variables) as gateway:
        yield gateway


def refusal(gateway: Gateway, **fields: Any) -> dict[str, Any]:
    """Send a chat request that must fail, and return the error."""
    body = json.dumps({"model": "gpt-4", "messages": [HELLO], **fields}).encode()
    request = urllib.request.Request(f"{gateway.url}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as failed:
        urllib.request.urlopen(request, timeout=20)
    with failed.value as response:
        error: dict[str, Any] = json.load(response)["error"]
    return {"status": failed.value.code, **error}


def request_of_readme(name: str) -> dict[str, Any]:
    """Return the body of the curl command in an example's README."""
    text = (EXAMPLES / name / "README.md").read_text()
    body: dict[str, Any] = json.loads(text.partition(" -d '")[2].partition("'")[0])
    return body


def client_says(environments: Environments, sdk: str, script: Path, url: str) -> str:
    """Run a client of an example, and return what it prints."""
    variables = {**client_variables(), "GATEWAY_URL": url}
    done = subprocess.run([environments.python(sdk), script], env=variables, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_there_is_a_test_for_each_example() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_files_that_a_readme_names_are_there(name: str) -> None:
    text = (EXAMPLES / name / "README.md").read_text()
    assert "promptmill --config config.yaml --port 4000" in text
    named = set(re.findall(r"\b[\w/]+\.(?:py|yaml|md|json)\b", text))
    assert named
    assert {file for file in named if not (EXAMPLES / name / file).is_file()} == set()


@pytest.mark.sdk
def test_the_quick_start_answers_both_of_its_clients(tmp_path: Path, environments: Environments) -> None:
    directory = shutil.copytree(EXAMPLES / "quick_start", tmp_path / "quick_start")
    for name in ("config.yaml", "custom_prompt.py"):
        assert (directory / name).read_bytes() == (page.SEED / name).read_bytes()
    with run_upstream_in_thread() as upstream:
        config, variables = page.config(upstream.url), {"OPENAI_API_KEY": page.UPSTREAM_KEY}
        with start_gateway(directory, config=config, variables=variables) as gateway:
            openai = client_says(environments, "openai-3", directory / "client_openai.py", gateway.url)
            langchain = client_says(environments, "langchain", directory / "client_langchain.py", gateway.url)
        assert (openai, langchain) == ("2 messages", "1 messages")
        assert [r.json["messages"] for r in upstream.requests] == [page.TRANSFORMED, page.TRANSFORMED[:1]]


@contextmanager
def prompt_service(directory: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run the example's service on a free port, and yield its address."""
    command = [sys.executable, str(directory / "service.py"), "0"]
    with (directory / "service.log").open("wb") as log:
        service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    with service:
        try:
            assert service.stdout is not None
            yield service.stdout.readline().split()[-1].removesuffix("/prompts/"), service
        finally:
            service.kill()


def test_prompts_come_from_a_service_and_outlive_it(tmp_path: Path) -> None:
    directory = shutil.copytree(EXAMPLES / "prompt_service", tmp_path / "service")
    greeting = request_of_readme("prompt_service")
    no_time = {"PROMPT_SERVICE_KEEP": "0"}  # each request asks the service
    with (
        prompt_service(directory) as (url, service),
        running("prompt_service", tmp_path, PROMPT_SERVICE_URL=url, **no_time) as gateway,
    ):
        assert gateway.ask(**greeting) == "system: Greet Ada, in French.\nuser: hi"
        edited = json.loads((directory / "prompts.json").read_text())
        edited["greeting"]["messages"][0]["content"] = "Salute {name}."
        (directory / "prompts.json").write_text(json.dumps(edited))
        assert gateway.ask(**greeting) == "system: Salute Ada.\nuser: hi"

        missing = refusal(gateway, prompt_id="nothing")
        assert (missing["status"], missing["code"]) == (502, "prompt_manager_error")
        assert "the prompt service has no prompt 'nothing'" in missing["message"]
        assert "needs a variable 'name'" in refusal(gateway, prompt_id="greeting")["message"]

        service.kill()
        service.wait()
        assert gateway.ask(**greeting) == "system: Salute Ada.\nuser: hi"
        assert "the prompt service does not answer" in refusal(gateway, prompt_id="another")["message"]


def test_a_prompt_is_kept_for_a_while(tmp_path: Path) -> None:
    directory = shutil.copytree(EXAMPLES / "prompt_service", tmp_path / "service")
    greeting = request_of_readme("prompt_service")
    with prompt_service(directory) as (url, _), running("prompt_service", tmp_path, PROMPT_SERVICE_URL=url) as gateway:
        assert gateway.ask(**greeting) == "system: Greet Ada, in French.\nuser: hi"
        (directory / "prompts.json").write_text("{}")
        assert gateway.ask(**greeting) == "system: Greet Ada, in French.\nuser: hi"


def test_each_manager_serves_its_own_prompts(tmp_path: Path) -> None:
    with running("several_managers", tmp_path) as gateway:
        refund = gateway.ask(**request_of_readme("several_managers"))
        assert refund == "system: Be brief. Help Ada to get a refund.\nuser: hi"
        tea = gateway.ask(prompt_id="marketing/tea")
        assert tea == "system: Be brief. Write a line that sells tea.\nuser: hi"
        error = refusal(gateway, prompt_id="sales/tea")
    assert (error["status"], error["code"]) == (404, "prompt_not_found")
    assert "support.manager" in error["message"]
    assert "marketing.manager" in error["message"]


def test_a_manager_is_tried_without_a_gateway() -> None:
    messages = json.dumps([HELLO])
    arguments = ["marketing.py:manager", "--id", "marketing/tea", "--messages", messages, "--diff"]
    done = promptmill("prompt", "test", *arguments, cwd=EXAMPLES / "several_managers")
    assert done.returncode == 0, done.stderr
    assert "Write a line that sells tea." in done.stdout


@pytest.mark.sdk
def test_hosted_prompts_move_here_by_the_base_url(tmp_path: Path, environments: Environments) -> None:
    with running("openai_prompt_object", tmp_path) as gateway:
        said = client_says(
            environments, "openai-3", EXAMPLES / "openai_prompt_object" / "client.py", f"{gateway.url}/v1"
        )
        assert said == "system: You welcome people to the library. Greet Ada in French, in one sentence."
        older = {"id": "pmpt_welcome", "version": "1", "variables": {"name": {"type": "input_text", "text": "Bob"}}}
        rendered = "system: You welcome people to the library. Greet Bob in one sentence.\nuser: hi"
        assert gateway.ask(model="gpt-4.1", prompt=older) == rendered
        newest = {"id": "pmpt_welcome", "variables": {"name": "Bob", "language": "Dutch"}}
        assert "Dutch" in gateway.ask(model="gpt-4.1", prompt=newest)
        for prompt, said in (
            ({"id": "pmpt_welcome", "version": "3"}, "has no version 3; there is 1, 2"),
            ({"id": "pmpt_welcome"}, "needs a variable 'name'"),
            ({"id": "../secrets"}, "no prompt manager serves this prompt id"),
        ):
            assert said in refusal(gateway, model="gpt-4.1", prompt=prompt)["message"]
