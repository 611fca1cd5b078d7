"""S44-S47: canaries wherever a secret can be, through all that can go wrong, in real processes that log everything."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
from fakes.callers import Caller, body, calling, parts
from fakes.gateways import Gateway, environment, promptmill, start_gateway
from fakes.pipelines import Rival, raw_link
from fakes.servers import Server, start_server
from fakes.upstream import (
    CUT,
    Answer,
    Received,
    ScriptedUpstream,
    chunk,
    completion,
    default,
    drop,
    failure,
    hang,
    raw,
    redirect,
    reply,
    sse,
)
from fakes.waiting import wait_until

from pipeline.transport import keyspace

pytestmark = [pytest.mark.processes, pytest.mark.anyio]

# No prefix that a pattern would know: only those who know the secret can take it out.
PLAIN_KEY: Final = "canary1plainkey7Qw"
VARIABLE_KEY: Final = "canary2variablekey8Rt"
HEADER_KEY: Final = "canary3header9Yu"
URL_USER: Final = "canary4user"
URL_PASSWORD: Final = "canary5password3Io"
REDIS_PASSWORD: Final = "canary6redis/@:pass"
MASTER: Final = "canary7master5Pa"
TEAM: Final = "canary8team6Sd"
WRONG: Final = "canary9wrong1Fg"
CONFIGURED: Final = "canary10configured2Hj"
MANAGER_TOKEN: Final = "canary11manager3Kl"
PROMPT: Final = "canary12-words-of-the-user"
COMPLETION: Final = "canary13-words-of-the-provider"
VARIABLES: Final = "canary14-variables-of-the-prompt"

SECRETS: Final = (
    PLAIN_KEY,
    VARIABLE_KEY,
    HEADER_KEY,
    URL_PASSWORD,
    f"{URL_USER}:{URL_PASSWORD}",
    REDIS_PASSWORD,
    MASTER,
    TEAM,
    WRONG,
    CONFIGURED,
    MANAGER_TOKEN,
)
WORDS: Final = (PROMPT, COMPLETION, VARIABLES)

MANAGERS = """
import os
from litellm.integrations.custom_prompt_management import CustomPromptManagement

class Mine(CustomPromptManagement):
    def get_chat_completion_prompt(
        self, model, messages, non_default_params, prompt_id, prompt_variables, dynamic_callback_params
    ):
        if prompt_id == "raises":
            raise RuntimeError(f"{os.environ['MANAGER_TOKEN']} was refused")
        if prompt_id == "groups":
            raise ExceptionGroup(os.environ["MANAGER_TOKEN"], [ValueError(os.environ["REDIS_URL"])])
        if prompt_id == "exits":
            raise SystemExit(os.environ["REDIS_URL"])
        if prompt_id == "dies":
            os._exit(1)
        return model, [{"role": "system", "content": str(prompt_variables)}, *messages], non_default_params

mine = Mine()
"""


def in_all_forms(secret: str) -> set[str]:
    """Return the secret as it may be written down: plain, encoded, and all but whole."""
    encoded = base64.b64encode(secret.encode()).decode().rstrip("=")
    return {secret, encoded, secret[:-3], secret[3:]} if len(secret) > 12 else {secret, encoded}


def assert_nothing_told(text: str, *, words: bool) -> None:
    """No secret, and where `words` is set nothing of what was said either, stands in `text`."""
    wanted = {form for secret in SECRETS for form in in_all_forms(secret)} | (set(WORDS) if words else set())
    for form in wanted:
        at = text.find(form)
        assert at < 0, f"{form} in: …{text[max(0, at - 300) : at + 100]}"


def configuration(url: str) -> str:
    with_user = url.replace("http://", f"http://{URL_USER}:{URL_PASSWORD}@")
    return f"""
model_list:
  - model_name: gpt-4
    litellm_params: {{model: openai/gpt-4, api_base: "{url}", api_key: {PLAIN_KEY}, timeout: 0.5}}
  - model_name: variable
    litellm_params: {{model: openai/gpt-4, api_base: "{url}", api_key: os.environ/THE_KEY, timeout: 0.5}}
  - model_name: header
    litellm_params:
      {{model: hosted_vllm/x, api_base: "{url}", extra_headers: {{x-api-key: "Token {HEADER_KEY}"}}, timeout: 0.5}}
  - model_name: userinfo
    litellm_params: {{model: hosted_vllm/x, api_base: "{with_user}", timeout: 0.5}}
  - model_name: nowhere
    litellm_params:
      {{model: hosted_vllm/x, api_base: "http://{URL_USER}:{URL_PASSWORD}@127.0.0.1:1/v1", api_key: {PLAIN_KEY}}}
  - model_name: configured
    litellm_params: {{model: openai/gpt-4, api_base: "{url}", api_key: os.environ/CONFIGURED_KEY, timeout: 0.5}}
litellm_settings: {{callbacks: mine.mine, num_retries: 0}}
router_settings: {{allowed_fails: 100000, cooldown_time: 0}}
general_settings: {{master_key: {MASTER}}}
environment_variables: {{CONFIGURED_KEY: {CONFIGURED}}}
promptmill_settings: {{keys: {{team: os.environ/TEAM_KEY}}, lease: 1, dead_letter_bodies: false}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


async def _set_password(url: str) -> None:
    async with raw_link(url) as link:
        await link.run(("ACL", "SETUSER", "gateway", "on", f">{REDIS_PASSWORD}", "~*", "&*", "+@all"))


@pytest.fixture(scope="module")
def gateway(directory: Path, server: Server, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    (directory / "mine.py").write_text(MANAGERS)
    anyio.run(_set_password, server.url)
    variables = {
        "REDIS_URL": server.url.replace("unix://", "unix://gateway:canary6redis%2F%40%3Apass@"),
        "THE_KEY": VARIABLE_KEY,
        "TEAM_KEY": TEAM,
        "MANAGER_TOKEN": MANAGER_TOKEN,
    }
    with start_gateway(
        directory, "--detailed_debug", config=configuration(upstream.url), variables=variables
    ) as running:
        running.directory = directory  # type: ignore[attr-defined]
        running.variables = variables  # type: ignore[attr-defined]
        yield running
        assert running.stop(signal.SIGTERM) == 0
        assert running.log.count("request done") > 50
        assert_nothing_told(running.log, words=True)


@pytest.fixture
async def caller(gateway: Gateway, upstream: ScriptedUpstream) -> AsyncIterator[Caller]:
    upstream.default = default
    async with calling(gateway.url, TEAM) as open_caller:
        yield open_caller


def quoting(received: Received) -> str:
    """Return every credential of a call, in all forms, as a provider that quotes what it refuses."""
    sent = received.headers.get("authorization", "") + " " + received.headers.get("x-api-key", "")
    token = sent.split()[-1] if sent.strip() else ""
    encoded = base64.b64encode(token.encode()).decode()
    masked = f"{token[:4]}*****{token[-4:]}"
    decoded = ""
    if sent.startswith("Basic "):
        decoded = base64.b64decode(token).decode() + " " + base64.b64decode(token).decode().partition(":")[2]
    return f"Incorrect API key provided: {sent}, {token}, {encoded}, {masked} {decoded}. {COMPLETION}"


def refusal(status: int) -> Callable[[Received], Answer]:
    return lambda received: failure(status, quoting(received), type=quoting(received), code=quoting(received))


WRONG_ANSWERS: dict[str, Callable[[Received], Answer]] = {
    **{str(status): refusal(status) for status in (400, 401, 403, 404, 408, 409, 422, 429, 500, 503, 529)},
    "a bare error": lambda received: reply({"error": quoting(received)}, 400),
    "a detail": lambda received: reply({"detail": quoting(received)}, 422),
    "an error under 200": lambda received: reply({"error": {"message": quoting(received), "code": 500}}),
    "a page": lambda received: reply(f"<html>{quoting(received)}".encode(), 502),
    "no HTTP": lambda received: raw(quoting(received).encode() + b"\r\n\r\n", CUT),
    "a header": lambda received: reply({}, 400, {"x-error": quoting(received), "retry-after": quoting(received)}),
    "a redirect": lambda received: redirect(f"http://127.0.0.1:1/?{quoting(received)}".replace(" ", "+")),
    "an event": lambda received: sse(chunk("x"), {"error": {"message": quoting(received)}}, done=False),
    "an event at once": lambda received: sse({"error": {"message": quoting(received), "code": 401}}, done=False),
    "a cut stream": lambda received: sse(chunk(COMPLETION), done=False, then=CUT),
    "nothing": lambda _: hang(),
    "a cut": lambda _: drop(),
}


@pytest.mark.parametrize("name", WRONG_ANSWERS)
async def test_s45_a_key_that_a_provider_quotes_comes_to_nobodys_eyes(
    caller: Caller, upstream: ScriptedUpstream, name: str
) -> None:
    upstream.default = WRONG_ANSWERS[name]
    models = ["gpt-4", "variable", "header", "userinfo", "configured"]
    fields = [{"text": PROMPT, "model": model, "stream": stream} for model in models for stream in (False, True)]
    for answer in await caller.gather(*fields):
        assert answer.status >= 400 or b"error" in answer.content
        told = answer.content.decode() + str(dict(answer.headers))
        assert_nothing_told(told, words=False)
        for secret in (PLAIN_KEY, VARIABLE_KEY, CONFIGURED, HEADER_KEY):
            assert f"*{secret[-4:]}" not in told, "a masked key still shows its ends"


async def test_s47_what_goes_well_is_not_written_down_either(caller: Caller, upstream: ScriptedUpstream) -> None:
    upstream.default = lambda received: (
        sse(chunk(COMPLETION), chunk(finish="stop")) if received.json.get("stream") else reply(completion(COMPLETION))
    )
    variables = {"name": VARIABLES}
    for fields in ({}, {"stream": True}, {"prompt_id": "p", "prompt_variables": variables}):
        answer = await caller.chat(PROMPT, user=PROMPT, metadata={"a": PROMPT}, **fields)
        assert COMPLETION in answer.content.decode()
    assert upstream.requests[-1].json["messages"][0]["content"] == str(variables)


async def test_s44_neither_is_what_is_refused(caller: Caller) -> None:
    content = json.dumps(body(PROMPT)).encode()
    for extra in ({"authorization": f"Bearer {WRONG}"}, {"authorization": f"Basic {WRONG}"}, {"api_key": WRONG}):
        answer = await caller.post(content, **{"authorization": "", **extra})
        assert answer.status == 401
        assert_nothing_told(answer.content.decode() + str(dict(answer.headers)), words=True)
    for wrong in (content[:-1], content.replace(b'"gpt-4"', b'["gpt-4"]'), b"\xff" + content):
        assert_nothing_told((await caller.post(wrong)).content.decode(), words=True)
    answer = await caller.chat(PROMPT, model="nowhere")
    assert answer.status == 502
    assert_nothing_told(answer.content.decode(), words=True)
    assert (await caller.post(content, f"/v1/chat/completions?key={WRONG}")).status == 200


@pytest.mark.parametrize("prompt_id", ["raises", "groups", "exits"])
async def test_s44_a_manager_that_raises_with_a_secret_in_its_words(caller: Caller, prompt_id: str) -> None:
    answer = await caller.chat(PROMPT, prompt_id=prompt_id, prompt_variables={"x": VARIABLES})
    assert (answer.status, answer.error["code"]) == (502, "prompt_manager_error")
    assert "[redacted]" in answer.error["message"]
    assert_nothing_told(answer.content.decode(), words=True)


async def everything_in(server: Server) -> dict[bytes, Any]:
    """Return all that stands in Redis, values by the names of their keys."""
    async with raw_link(server.url) as link:
        found: dict[bytes, Any] = {}
        for key in await link.run(("KEYS", "*")):
            kind = (await link.run(("TYPE", key))).decode()
            command: dict[str, tuple[Any, ...]] = {
                "stream": ("XRANGE", key, "-", "+"),
                "hash": ("HGETALL", key),
                "zset": ("ZRANGE", key, 0, -1),
                "string": ("GET", key),
            }
            found[key] = await link.run(command[kind])
        return found


async def test_s44_dead_letters_keys_and_metrics_hold_no_secret(
    gateway: Gateway, caller: Caller, server: Server
) -> None:
    async with raw_link(server.url) as link:
        await Rival(link, "dispatch").put("h", PROMPT, "b", PROMPT)
    answer = await caller.chat(PROMPT, prompt_id="dies", prompt_variables={"x": VARIABLES})
    assert answer.error["code"] == "prompt_manager_crashed"
    assert_nothing_told(answer.content.decode(), words=True)

    async def two_letters() -> bool:
        async with raw_link(server.url) as link:
            return bool(await link.run(("XLEN", keyspace.DEAD)) >= 2)

    await wait_until(two_letters, timeout=10)
    await wait_until(lambda: _serves(caller), timeout=20)
    metrics = await caller.client.get("/metrics", headers={"authorization": f"Bearer {MASTER}"})
    assert metrics.status_code == 200
    assert_nothing_told(metrics.text, words=True)
    stored = await everything_in(server)
    assert_nothing_told(repr(stored), words=False)  # replies stand there until their clients have them
    assert_nothing_told(repr([*stored, stored[keyspace.DEAD.encode()]]), words=True)
    directory: Path = gateway.directory  # type: ignore[attr-defined]
    variables: dict[str, str] = gateway.variables  # type: ignore[attr-defined]
    for command in (["dead", "list"], ["status", "--json"], ["check"]):
        done = promptmill(*command, "-c", "config.yaml", cwd=directory, **variables)
        assert_nothing_told(done.stdout + done.stderr, words=True)


async def _serves(caller: Caller) -> bool:
    return (await caller.chat(prompt_id="p")).status == 200


def test_s44_no_process_shows_a_secret_in_its_command_line(gateway: Gateway) -> None:
    for pid in (gateway.process.pid, *gateway.children()):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert command
        assert_nothing_told(command.decode(errors="replace"), words=True)


async def test_s44_while_redis_is_away_nobody_tells_its_password(
    caller: Caller, server: Server, gateway: Gateway
) -> None:
    os.kill(server.pid, signal.SIGKILL)
    try:

        async def refused() -> bool:
            with anyio.move_on_after(2):
                answer = await caller.chat(PROMPT)
                assert_nothing_told(answer.content.decode(), words=True)
                return answer.status == 503
            return False

        await wait_until(refused, timeout=15)
        assert parts(gateway).keys() >= {"ingress", "resolve", "dispatch"}
    finally:
        server.kill()
        server.restart()
        await _set_password(server.url)
    await wait_until(lambda: _serves(caller), timeout=20)


UNFIT = {
    "a wrong password": "redis://gateway:canary6redis%2F%40%3Apass@127.0.0.1:1/0",
    "no such host": "redis://gateway:canary6redis%2F%40%3Apass@nowhere.invalid:6379/0",
    "a port that is none": "redis://gateway:canary6redis/@:pass@127.0.0.1:6379/0",
    "no URL": "canary6redis/@:pass",
    "another kind": "https://gateway:canary6redis%2F%40%3Apass@127.0.0.1/",
}


@pytest.mark.parametrize("name", UNFIT)
def test_s44_a_redis_url_that_cannot_be_used_is_not_shown(tmp_path: Path, name: str) -> None:
    done = promptmill("status", cwd=tmp_path, REDIS_URL=UNFIT[name])
    assert done.returncode in (2, 3)
    assert_nothing_told(done.stdout + done.stderr, words=True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["a wrong password", "a port that is none"])
def test_s44_nor_does_a_worker_tell_it_that_waits_for_its_server(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.yaml").write_text("model_list: [{model_name: m, litellm_params: {model: echo/echo}}]\n")
    command = [sys.executable, "-P", "-m", "pipeline", "worker", "dispatch", "-c", "config.yaml", "--debug"]
    output = tmp_path / "output.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment(REDIS_URL=UNFIT[name]), stdout=file, stderr=file
        )
    try:
        anyio.run(lambda: wait_until(lambda: b"edis" in output.read_bytes(), timeout=30))
    finally:
        process.terminate()
        process.wait(20)
    assert_nothing_told(output.read_text(), words=True)
