"""Every refusal reaches openai-python as the exception class it has for it, and is not tried again in vain."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from fakes import page
from fakes.environments import Environments
from fakes.gateways import environment, start_gateway
from fakes.servers import start_server
from fakes.upstream import CUT, Answer, Received, Script, chunk, failure, hang, raw, reply, run_upstream_in_thread, sse
from fakes.waiting import wait_until

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(400)]

MASTER, TEAM = "sk-a-long-and-random-one", "sk-another-long-and-random-one"
SDKS = ("openai-2", "openai-3")
HI = [{"role": "user", "content": "hi"}]

MANAGER = """
import pathlib, time
from litellm.integrations.custom_prompt_management import CustomPromptManagement

class Failing(CustomPromptManagement):
    def should_run_prompt_management(self, prompt_id, dynamic_callback_params):
        return prompt_id != "unknown"

    def get_chat_completion_prompt(
        self, model, messages, non_default_params, prompt_id, prompt_variables, dynamic_callback_params
    ):
        with pathlib.Path(__file__).with_name(prompt_variables["calls"]).open("a") as file:
            print(prompt_id, file=file)
        if prompt_id == "slow":
            time.sleep(1.5)
        raise LookupError("there is no such prompt")

failing = Failing()
"""

UPSTREAM: dict[str, Script] = {
    "up-400": failure(400, "max_tokens is too large"),
    "up-401": failure(401, "wrong key"),
    "up-404": failure(404, "no such model"),
    "up-422": failure(422, "not processable"),
    "up-429": failure(429, "slow down", {"retry-after": "7"}),
    "up-500": failure(500, "oh no"),
    "up-cut-body": raw(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n<ht", CUT),
    "up-html": reply(b"<html>hello</html>", headers={"content-type": "text/html"}),
    "up-error": reply({"error": {"message": "as a 200"}}),
    "up-hangs": hang(),
    "up-cut": sse(chunk("he"), then=CUT, done=False),
    "up-breaks": sse(chunk("he"), {"error": {"message": "overloaded", "code": "overloaded"}}, done=False),
    "up-response-cut": sse({"type": "response.output_text.delta", "delta": "he"}, then=CUT, done=False),
}


class Case(NamedTuple):
    """A call, and what openai-python makes of the answer."""

    error: str
    status: int | None
    code: str | None
    arguments: dict[str, Any]
    client: Mapping[str, Any] = MappingProxyType({})
    method: str = "chat.completions.create"
    text: str = ""
    said: str = ""


def prompted(prompt_id: str) -> dict[str, Any]:
    return {"model": "up-ok", "extra_body": {"prompt_id": prompt_id}}


STREAM = {"stream": True}
CASES = {
    "bad types": Case("BadRequestError", 400, "invalid_request", {"extra_body": {"messages": "hi"}}, said="`messages`"),
    "no key": Case("AuthenticationError", 401, "invalid_api_key", {}, {"default_headers": {"Authorization": ""}}),
    "wrong key": Case("AuthenticationError", 401, "invalid_api_key", {}, {"api_key": "sk-wrong"}),
    "disallowed model": Case("PermissionDeniedError", 403, "model_not_allowed", {"model": "costly"}),
    "unknown model": Case("NotFoundError", 404, "model_not_found", {"model": "up-okay"}, said="up-ok"),
    "unknown prompt": Case("NotFoundError", 404, "prompt_not_found", prompted("unknown"), said="mine.failing"),
    "oversize": Case("APIStatusError", 413, "request_too_large", {"user": "u" * 100_000}),
    "manager raises": Case("InternalServerError", 502, "prompt_manager_error", prompted("raises"), said="mine.py"),
    "manager is slow": Case("InternalServerError", 504, "prompt_manager_timeout", prompted("slow")),
    "model without key": Case("InternalServerError", 503, "model_disabled", {"model": "up-keyless"}, said="NOT_SET"),
    "nobody there": Case("InternalServerError", 502, "upstream_unavailable", {"model": "up-closed"}),
    "upstream 400": Case("BadRequestError", 400, "upstream_rejected", {"model": "up-400"}, said="max_tokens"),
    "upstream 401": Case("InternalServerError", 502, "upstream_auth_failed", {"model": "up-401"}),
    "upstream 404": Case("NotFoundError", 404, "upstream_rejected", {"model": "up-404"}),
    "upstream 422": Case("UnprocessableEntityError", 422, "upstream_rejected", {"model": "up-422"}),
    "upstream 429": Case("RateLimitError", 429, "upstream_rate_limited", {"model": "up-429"}),
    "upstream 500": Case("InternalServerError", 502, "upstream_unavailable", {"model": "up-500"}),
    "upstream cut": Case("InternalServerError", 502, "upstream_cut", {"model": "up-cut-body"}),
    "upstream html": Case("InternalServerError", 502, "upstream_not_api", {"model": "up-html"}),
    "upstream error as 200": Case("InternalServerError", 502, "upstream_garbled", {"model": "up-error"}),
    "upstream timeout": Case("InternalServerError", 504, "upstream_timeout", {"model": "up-hangs"}),
    "upstream 429 to a stream": Case("RateLimitError", 429, "upstream_rate_limited", {"model": "up-429", **STREAM}),
    "cut stream": Case("APIError", None, "upstream_cut", {"model": "up-cut", **STREAM}, text="he"),
    "error in stream": Case("APIError", None, "upstream_unavailable", {"model": "up-breaks", **STREAM}, text="he"),
    "cut Response": Case(
        "APIError", None, "upstream_cut", {"model": "up-response-cut", "input": "hi", **STREAM},
        method="responses.create", text="he",
    ),
    "impatient client": Case(
        "APITimeoutError", None, None, {"model": "up-hangs-longer", **STREAM}, {"timeout": 0.7, "max_retries": 0}
    ),
}  # fmt: skip
"""All with the client's default retries, but where it is the client that gives up."""


def config(api_base: str) -> str:
    """Return a configuration with a model for each way an upstream fails, and a few that fail earlier."""
    names = [*UPSTREAM, "up-ok", "up-hangs-longer", "costly"]
    entries = [f"{{model_name: {n}, litellm_params: {{model: openai/{n}, api_base: '{api_base}'}}}}" for n in names]
    text = "\n  - ".join(["model_list:", *entries])
    text = text.replace("openai/up-hangs,", "openai/up-hangs, timeout: 0.5,")
    return f"""{text}
  - {{model_name: up-closed, litellm_params: {{model: openai/x, api_base: 'http://127.0.0.1:9/v1'}}}}
  - {{model_name: up-keyless, litellm_params: {{model: openai/x, api_key: os.environ/NOT_SET}}}}
litellm_settings: {{callbacks: mine.failing}}
general_settings: {{master_key: {MASTER}}}
router_settings: {{num_retries: 0}}
promptmill_settings:
  keys: {{team: {{key: {TEAM}, models: [up-*]}}}}
  max_body_bytes: 50000
  prompt_timeout: 1
"""


def call_of(case: Case, sdk: str, url: str) -> dict[str, Any]:
    """Return a case as `openai_calls.py` takes it."""
    arguments: dict[str, Any] = {"model": "up-ok", **case.arguments}
    if case.method == "chat.completions.create":
        arguments["messages"] = HI
    if "prompt_id" in (extra := arguments.get("extra_body", {})):
        arguments["extra_body"] = {**extra, "prompt_variables": {"calls": f"calls-{sdk}"}}
    return {"client": {"base_url": url, "api_key": TEAM, **case.client}, "arguments": arguments, "method": case.method}


class Outcomes(NamedTuple):
    """What came of every case, how often the provider was called for each model, and the manager for each prompt."""

    came: dict[str, dict[str, Any]]
    upstream: Counter[str]
    manager: Counter[str]


@pytest.fixture(scope="module")
def outcomes_of(
    tmp_path_factory: pytest.TempPathFactory, environments: Environments, lonely: Lonely
) -> Iterator[Callable[[str], Outcomes]]:
    """Return a function that makes all calls with one SDK, the first time it is asked."""
    directory: Path = tmp_path_factory.mktemp("refusing")
    (directory / "mine.py").write_text(MANAGER)
    known: dict[str, Outcomes] = {}
    with run_upstream_in_thread() as upstream:
        upstream.default = answer
        with start_gateway(directory, config=config(upstream.url), variables={"OPENAI_API_KEY": "sk-x"}) as gateway:

            def ask(sdk: str) -> Outcomes:
                if sdk not in known:
                    upstream.requests.clear()
                    calls = [call_of(case, sdk, gateway.url) for case in CASES.values()]
                    came = dict(zip(CASES, environments.run(sdk, "openai_calls.py", calls), strict=True))
                    called = Counter((directory / f"calls-{sdk}").read_text().split())
                    known[sdk] = Outcomes(came, Counter(r.json["model"] for r in upstream.requests), called)
                return known[sdk]

            yield ask


def answer(received: Received) -> Answer:
    """Answer as the model's name asks."""
    found = UPSTREAM.get(received.json["model"], hang())
    assert isinstance(found, Answer)
    return found


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize("name", CASES)
def test_a_refusal_is_the_clients_own_exception(outcomes_of: Callable[[str], Outcomes], name: str, sdk: str) -> None:
    case, came = CASES[name], outcomes_of(sdk).came[name]
    assert (came.get("error"), came.get("status"), came.get("code")) == (case.error, case.status, case.code), came
    assert came["text"] == case.text
    assert case.said in came["message"]
    if case.code is not None:
        assert set(came["body"]) == {"message", "type", "param", "code", "hint", "stage", "request_id"}
    if case.status is not None:
        assert came["headers"]["x-should-retry"] == "false"
        assert came["headers"]["x-request-id"] == came["body"]["request_id"]


@pytest.mark.parametrize("sdk", SDKS)
def test_a_manager_that_fails_is_called_once_whatever_the_client_retries(
    outcomes_of: Callable[[str], Outcomes], sdk: str
) -> None:
    assert outcomes_of(sdk).manager == {"raises": 1, "slow": 1}


@pytest.mark.parametrize("sdk", SDKS)
def test_the_client_does_not_repeat_the_gateways_own_retries(outcomes_of: Callable[[str], Outcomes], sdk: str) -> None:
    expected = {**dict.fromkeys(UPSTREAM, 1), "up-429": 2, "up-hangs-longer": 1}  # 429 is the answer of two cases
    assert outcomes_of(sdk).upstream == expected


class Crowd:
    """Clients that ask a model which never answers: one is served, one waits, and the third is refused."""

    def __init__(self, url: str, stack: contextlib.ExitStack) -> None:
        self._port = int(url.rpartition(":")[2])
        self._stack = stack
        self._admitted = 0

    def is_refused(self) -> bool:
        """Send one more request; return whether two are in and this one is not."""
        body = b'{"model": "gpt-4", "messages": []}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        client = self._stack.enter_context(socket.create_connection(("127.0.0.1", self._port)))
        client.sendall(head + body)
        if not select.select([client], [], [], 0.25)[0]:
            self._admitted += 1
            return False
        assert client.recv(100).startswith(b"HTTP/1.1 429")
        return self._admitted >= 2


def ask_hi(environments: Environments, sdk: str, url: str) -> dict[str, Any]:
    call = {"client": {"base_url": url, "max_retries": 0}, "arguments": {"model": "gpt-4", "messages": HI}}
    came: dict[str, Any] = environments.run(sdk, "openai_calls.py", [call])[0]
    return came


@pytest.mark.anyio
async def test_a_full_backlog_is_a_rate_limit_error(tmp_path: Path, environments: Environments) -> None:
    limits = "promptmill_settings: {dispatch_slots: 1, max_backlog: 1}\n"
    page.copy_files(tmp_path)
    with run_upstream_in_thread() as upstream:
        upstream.default = hang()
        variables = {"OPENAI_API_KEY": "sk-x"}
        config = page.config(upstream.url) + limits
        gateways = start_gateway(tmp_path, config=config, variables=variables)
        with gateways as gateway, contextlib.ExitStack() as stack:
            crowd = Crowd(gateway.url, stack)
            await wait_until(crowd.is_refused, timeout=20, every=0.1)
            for sdk in SDKS:
                came = ask_hi(environments, sdk, gateway.url)
                assert (came.get("error"), came["status"], came["code"]) == ("RateLimitError", 429, "backlog_full")
                assert int(came["headers"]["retry-after"]) >= 1


class Lonely(NamedTuple):
    """An ingress process that has a server and no workers."""

    url: str
    kill_server: Callable[[], None]


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lonely]:
    directory: Path = tmp_path_factory.mktemp("lonely")
    (directory / "config.yaml").write_text("model_list: [{model_name: gpt-4, litellm_params: {model: echo/echo}}]\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with start_server(directory) as server, (directory / "log").open("wb") as log:
        command = [sys.executable, "-P", "-m", "pipeline", "ingress", "--config", "config.yaml", "--port", str(port)]
        process = subprocess.Popen(
            command, cwd=directory, env=environment(REDIS_URL=server.url), stdout=log, stderr=log
        )
        try:
            yield Lonely(f"http://127.0.0.1:{port}", server.kill)
        finally:
            process.terminate()
            process.wait(40)


def accepts(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


@pytest.mark.anyio
async def test_no_worker_and_no_redis_are_server_errors(lonely: Lonely, environments: Environments) -> None:
    await wait_until(lambda: accepts(lonely.url), timeout=20)
    came = [ask_hi(environments, sdk, lonely.url) for sdk in SDKS]
    assert [(c.get("error"), c["status"], c["code"]) for c in came] == [("InternalServerError", 503, "no_worker")] * 2
    lonely.kill_server()

    def all_say_so() -> bool:  # the process may need a moment to find out
        came = [ask_hi(environments, sdk, lonely.url) for sdk in SDKS]
        assert {(c.get("error"), c["status"]) for c in came} == {("InternalServerError", 503)}
        return {c["code"] for c in came} == {"redis_unavailable"}

    await wait_until(all_say_so, timeout=20)
