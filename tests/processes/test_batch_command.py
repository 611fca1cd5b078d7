"""`promptmill batch` against a real gateway: what runs, what runs again, what is written and said."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.batches import CHAT, line, lines
from fakes.gateways import Gateway, start_gateway
from fakes.upstream import Answer, Gate, Received, ScriptedUpstream, completion, failure, reply

from pipeline import cli, lockfile
from workers.batch_command.state import State

pytestmark = pytest.mark.processes


def asked(received: Received) -> str:
    return str(received.json["messages"][-1]["content"])


def echo(received: Received) -> Answer:
    return reply(completion(asked(received)))


def refusing(*texts: str) -> Callable[[Received], Answer]:
    def answer(received: Received) -> Answer:
        return failure(400, "too long", code="too_long") if asked(received) in texts else echo(received)

    return answer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="module")
def gateway(directory: Path, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    config = (
        f"model_list: [{{model_name: gpt-4, litellm_params: {{model: openai/m, api_base: '{upstream.url}', "
        "api_key: sk-upstream}}]\n"
        "general_settings: {master_key: sk-master-of-the-test}\n"
    )
    with start_gateway(directory, config=config, traced=True) as running:
        yield running


class Command:
    """Runs `promptmill batch` in this process; `out` and `err` are what the last one said."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self.out = self.err = ""

    def __call__(self, *words: str) -> int:
        return self.run("batch", *words)

    def run(self, *words: str) -> int:
        """Run another command."""
        with pytest.raises(SystemExit) as ended:
            cli.main(list(words))
        self.out, self.err = self._capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code


@pytest.fixture
def command(
    gateway: Gateway,
    upstream: ScriptedUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Command]:
    """Return the command in a directory of its own, with an input of six lines, for the gateway that runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPTMILL_URL", f"{gateway.url}/v1")
    monkeypatch.setenv("PROMPTMILL_API_KEY", "sk-master-of-the-test")
    upstream.default = echo
    upstream.requests.clear()
    Path("in.jsonl").write_bytes(lines(6))
    hang_up = signal.getsignal(signal.SIGHUP)
    yield Command(capfd)
    signal.signal(signal.SIGHUP, hang_up)


def read(path: str) -> dict[str, dict[str, Any]]:
    entries = [json.loads(text) for text in Path(path).read_bytes().splitlines()]
    assert len({entry["custom_id"] for entry in entries}) == len(entries)
    return {entry["custom_id"]: entry for entry in entries}


def test_a_run_again_runs_what_failed_and_then_nothing(command: Command, upstream: ScriptedUpstream) -> None:
    upstream.default = refusing("1", "4")
    assert command("run", "in.jsonl", "-o", "out.jsonl") == 1
    assert "4 of 6 lines answered" in command.out
    assert "2  too_long  (400)  too long" in command.out
    assert "the provider refused this request: correct the line" in command.out
    assert set(read("out.jsonl")) == {"r0", "r2", "r3", "r5"}
    errors = read("out.errors.jsonl")
    assert set(errors) == {"r1", "r4"}
    assert errors["r1"]["reason"] == "too_long: too long"

    upstream.default = echo
    upstream.requests.clear()
    assert command("run", "in.jsonl", "-o", "out.jsonl") == 0
    assert sorted(map(asked, upstream.requests)) == ["1", "4"]
    assert "(6 lines)" in command.out
    assert set(read("out.jsonl")) == {f"r{number}" for number in range(6)}
    assert {path.name for path in Path().iterdir()} == {"in.jsonl", "out.jsonl"}

    upstream.requests.clear()
    assert command("run", "in.jsonl", "-o", "out.jsonl", "--json") == 0
    assert "nothing to do" in command.err
    assert json.loads(command.out)["answers_in_output"] == 6
    assert upstream.requests == []


def test_lines_that_were_added_run_alone_unless_all_are_to_run(command: Command, upstream: ScriptedUpstream) -> None:
    assert command("run", "in.jsonl", "-o", "out.jsonl") == 0
    upstream.requests.clear()
    Path("in.jsonl").write_bytes(lines(6) + line("new", "new"))
    assert command("run", "in.jsonl", "-o", "out.jsonl", "--json") == 0
    assert [asked(received) for received in upstream.requests] == ["new"]
    assert "is newer than out.jsonl" in command.err
    told = json.loads(command.out)
    assert (told["status"], told["answered"], told["answers_in_output"], told["failures"]) == ("completed", 1, 7, [])
    upstream.requests.clear()
    upstream.default = refusing("2")
    assert command("run", "in.jsonl", "-o", "out.jsonl", "--fresh") == 1
    assert len(upstream.requests) == 7
    assert len(read("out.jsonl")) == 6


def test_the_lines_that_cannot_run_are_named_as_they_stand_in_the_input(command: Command) -> None:
    Path("out.jsonl").write_bytes(b'{"custom_id":"r0"}\n{"custom_id":"r1"}\n')
    Path("in.jsonl").write_bytes(lines(2) + line("x") + line("x") + line("y", model="gpt-5"))
    assert command("run", "in.jsonl", "-o", "out.jsonl") == 2
    assert "line 4: An earlier line has the same custom_id. (duplicate_custom_id, custom_id)" in command.err
    assert "line 5: model 'gpt-5' is not configured" in command.err
    assert not Path("out.jsonl.promptmill").exists()
    assert command("run", "in.jsonl", "-o", "out.jsonl", "--json") == 2
    told = json.loads(command.out)
    assert (told["status"], told["reason"]) == ("failed", "An earlier line has the same custom_id.")
    assert command("list", "--limit", "1") == 0
    failed, status, *_ = command.out.split()
    assert status == "failed"
    assert command("watch", failed) == 2
    assert "line 2: An earlier line" in command.out
    assert command("status", failed) == 2
    for again in ("results", "retry-failed"):
        assert command(again, failed) == 2
        assert "line 2: An earlier line" in command.err


def test_a_batch_whose_id_was_lost_is_found_again(
    command: Command, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    assert command("submit", "in.jsonl", "-m", "promptmill_run=this-run") == 0
    submitted = command.out.strip()
    State(run="this-run", url=gateway.url).save(Path("out.jsonl.promptmill"))
    assert command("run", "in.jsonl", "-o", "out.jsonl") == 0
    assert f"going on with {submitted}" in command.err
    assert len(upstream.requests) == len(read("out.jsonl")) == 6

    State(run="another", url=gateway.url).save(Path("new.jsonl.promptmill"))
    assert command("run", "in.jsonl", "-o", "new.jsonl") == 0
    assert len(upstream.requests) == 12, "no batch was made for it"


def test_a_batch_that_the_gateway_does_not_know_is_not_run_once_more(command: Command) -> None:
    State(run="r", url="http://other", batch="batch_" + "0" * 32).save(Path("out.jsonl.promptmill"))
    assert command("run", "in.jsonl", "-o", "out.jsonl") == 2
    assert "runs at http://other" in command.err
    assert "--fresh" in command.err
    assert command("run", "in.jsonl", "-o", "out.jsonl", "--fresh") == 0


def test_a_batch_is_submitted_watched_and_downloaded_in_steps(command: Command, upstream: ScriptedUpstream) -> None:
    upstream.default = refusing("3")
    assert command("submit", "in.jsonl", "-m", "of=mine", "--json") == 0
    made = json.loads(command.out)
    assert made["metadata"] == {"of": "mine"}
    batch = made["id"]
    assert command("watch", batch, "--json") == 1
    assert json.loads(command.out.splitlines()[-1])["status"] == "completed"
    assert command("watch", batch) == 1
    assert "1 line failed:" in command.out
    assert "too_long" in command.out
    assert command("status", batch, "--json") == 1
    assert json.loads(command.out)["id"] == batch
    assert command("results", batch) == 1
    assert len(command.out.splitlines()) == 5
    assert command("results", batch, "-o", "out.jsonl", "--json") == 1
    told = json.loads(command.out)
    assert (told["errors"], told["again"]) == ("out.errors.jsonl", f"`promptmill batch retry-failed {batch}`")
    assert set(read("out.errors.jsonl")) == {"r3"}

    upstream.default = echo
    upstream.requests.clear()
    assert command("retry-failed", batch) == 0
    again = command.out.strip()
    assert command("watch", again) == 0
    assert [asked(received) for received in upstream.requests] == ["3"]
    assert command("results", again, "-o", "out.jsonl") == 0
    assert len(read("out.jsonl")) == 6
    assert not Path("out.errors.jsonl").exists()
    assert command("retry-failed", again, "--json") == 0
    assert "there is nothing to run again" in command.err
    assert json.loads(command.out) == {"id": None}


def test_of_a_batch_that_was_cancelled_before_its_lines_ran_none_is_said_to_be_done(
    command: Command, upstream: ScriptedUpstream
) -> None:
    cancelled = {"id": "batch_1", "status": "cancelled", "endpoint": CHAT, "input_file_id": "f", "created_at": 1}
    upstream.script(reply({"data": []}), reply(cancelled))
    assert command("retry-failed", "batch_1", "--url", upstream.url) == 1
    assert "no line of batch_1 ran: submit its input once more" in command.err


def test_an_interrupted_download_is_told_and_gone_on_with(
    command: Command, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("workers.batch_command.running.collect", interrupted)
        assert command("run", "in.jsonl", "-o", "out.jsonl") == 130
    assert "has ended, and out.jsonl is not written" in command.err
    assert "still running" not in command.err
    assert command("run", "in.jsonl", "-o", "out.jsonl") == 0
    assert len(upstream.requests) == len(read("out.jsonl")) == 6


def test_a_batch_that_runs_is_shown_and_cancelled(command: Command, upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.default = lambda received: gate.before(echo(received))
    try:
        assert command("submit", "in.jsonl") == 0
        batch = command.out.strip()
        assert command("results", batch) == 2
        assert "still runs" in command.err
        assert command("retry-failed", batch) == 2
        assert command("status", batch) == 0
        assert batch in command.out
        assert command("list", "--limit", "1", "--json") == 0
        assert json.loads(command.out)["id"] == batch
        limit = time.monotonic() + 20
        while not upstream.requests:  # one that is cancelled earlier has no lines yet
            assert time.monotonic() < limit
            assert command("status", batch) == 0
        assert command("cancel", batch) == 0
        assert "cancelling" in command.out
        assert command("watch", batch) == 1
    finally:
        gate.open()
    assert "batch_cancelled" in command.out
    assert command("results", batch, "-o", "out.jsonl") == 1
    assert not Path("out.jsonl").exists()
    assert {error["hint"] for error in read("out.errors.jsonl").values()} == {
        f"`promptmill batch retry-failed {batch}` runs only the lines without an answer"
    }
    assert command("run", "in.jsonl", "-o", "out.jsonl") == 0


@pytest.mark.parametrize("words", [("-o", "out.jsonl"), ()])
def test_results_that_are_not_what_was_stored_are_told_and_not_taken(
    command: Command, directory: Path, words: tuple[str, ...]
) -> None:
    assert command("submit", "in.jsonl") == 0
    batch = command.out.strip()
    assert command("watch", batch, "--json") == 0
    stored = directory / ".promptmill" / "files" / json.loads(command.out.splitlines()[-1])["output_file_id"]
    stored.write_bytes(stored.read_bytes().replace(b"custom_id", b"custom-id", 1))
    assert command("results", batch, *words) == 1
    assert "its checksum differs" in command.err
    assert {path.name for path in Path().iterdir()} == {"in.jsonl"}


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("status", "batch_1"), 1, "there is no such batch"),
        (("list", "--key", "sk-another"), 2, "does not take the key"),
        (("list", "--url", "http://127.0.0.1:9"), 3, "cannot be reached"),
        (("list", "--url", "127.0.0.1:4000"), 2, "is no address of a gateway"),
        (("submit", "in.jsonl", "-m", "nothing"), 2, "is not KEY=VALUE"),
        (("submit", "in.jsonl", "--endpoint", "/v1/nothing"), 2, "`endpoint` must be one of"),
        (("run", "in.jsonl", "-o", "."), 2, "is a directory"),
        (("run", "in.jsonl", "-o", "nowhere/out.jsonl"), 2, "cannot be written"),
        (("run", "in.jsonl", "-o", "in.jsonl"), 2, "is the input"),
        (("run", "in.jsonl", "-o", "text"), 2, "is no output of a batch"),
    ],
)
def test_what_is_wrong_is_told_with_its_remedy(
    command: Command, words: tuple[str, ...], status: int, said: str
) -> None:
    Path("text").write_text("hello\n")
    assert command(*words) == status
    assert said in command.err
    assert "sk-another" not in command.err + command.out


def test_without_a_gateway_and_a_configuration_it_says_what_is_missing(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROMPTMILL_URL")
    assert command("run", "in.jsonl", "-o", "out.jsonl") == 2
    assert "there is no gateway" in command.err
    Path("config.yaml").write_text("model_list: 3\n")
    assert command("run", "in.jsonl", "-o", "out.jsonl", "-c", "config.yaml") == 2
    assert "config.yaml:1" in command.err


def test_a_gateway_that_does_not_start_says_why(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMPTMILL_URL")
    Path("config.yaml").write_text("model_list: [{model_name: gpt-4, litellm_params: {model: echo/echo}}]\n")
    Path("Procfile").write_text("ingress: promptmill nothing\n")
    assert command("run", "in.jsonl", "-o", "out.jsonl", "-c", "config.yaml") == 2
    assert "the gateway does not start" in command.err
    assert "promptmill nothing" in command.err


def test_the_gateway_on_this_machine_is_found_with_its_key_and_stopped(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROMPTMILL_URL")
    monkeypatch.delenv("PROMPTMILL_API_KEY")
    config = (
        "model_list: [{model_name: gpt-4, litellm_params: {model: echo/echo}}]\n"
        "general_settings: {master_key: sk-master-of-the-test}\n"
    )
    with start_gateway(Path.cwd(), config=config, traced=True) as running:
        assert command("run", "in.jsonl", "-o", "out.jsonl", "-c", "config.yaml") == 0
        assert "starting" not in command.err
        assert command("list") == 2, "nothing says which key"
        monkeypatch.setenv("PROMPTMILL_MASTER_KEY", "sk-master-of-the-test")
        assert command("list") == 0
        assert command.run("down") == 0
        assert command.out == f"process {running.process.pid} has ended\n"
        assert running.process.wait(10) == 0
    assert lockfile.running_in(Path(".promptmill")) is None
    assert command.run("down", "-c", "config.yaml") == 1
    assert "no gateway runs on" in command.err
