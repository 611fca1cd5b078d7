"""`promptmill batch run` as people use it: in a terminal, with a Ctrl-C in the middle, and once more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.batches import lines
from fakes.gateways import environment
from fakes.terminals import CTRL_C, in_terminal
from fakes.upstream import Answer, Gate, Received, completion, failure, reply, run_upstream_in_thread

from pipeline import lockfile
from pipeline.commands_down import stop

pytestmark = pytest.mark.processes

LINES, AT_ONCE = 60, 30


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Return a directory with an input; no gateway of it is left in the end."""
    (tmp_path / "in.jsonl").write_bytes(lines(LINES))
    yield tmp_path
    left = lockfile.running_in(tmp_path / ".promptmill")
    if left is not None:
        stop(left.pid, tmp_path / ".promptmill")
    assert left is None, "the gateway that was started for the batch goes on"


def test_a_run_shows_a_bar_detaches_and_goes_on(directory: Path) -> None:
    gate = Gate()

    def answer(received: Received) -> Answer:
        number = int(received.json["messages"][-1]["content"])
        if number < 2:
            return failure(400, "the context is too long", code="context_length_exceeded")
        return reply(completion(str(number))) if number < AT_ONCE else gate.before(reply(completion(str(number))))

    words = ("batch", "run", "in.jsonl", "-o", "out.jsonl", "-c", "config.yaml")
    output, state = directory / "out.jsonl", directory / "out.jsonl.promptmill"
    with run_upstream_in_thread() as upstream:
        upstream.default = answer
        (directory / "config.yaml").write_text(
            f"model_list: [{{model_name: gpt-4, litellm_params: {{model: openai/m, api_base: '{upstream.url}'}}}}]\n"
        )
        with in_terminal(
            *words, cwd=directory, environment=environment(traced=True, OPENAI_API_KEY="sk-upstream")
        ) as terminal:
            shown = terminal.wait_for(f"{AT_ONCE}/{LINES}")
            assert "in.jsonl  ━━" in shown
            assert "ok 28" in shown
            assert "failed 2" in shown
            terminal.wait_for(f"in flight {LINES - AT_ONCE}")
            terminal.press(CTRL_C)
            assert terminal.end() == 130
            said = terminal.screen.text
        assert "still running: promptmill batch watch batch_" in said
        assert "promptmill down -c config.yaml" in said
        assert json.loads(state.read_bytes())["batch"] in said
        assert not output.exists()

        gate.open()
        with in_terminal(*words, cwd=directory, environment=environment(traced=True)) as terminal:
            assert terminal.end() == 1
            said = terminal.screen.text
    assert "going on with batch_" in said
    assert "58 of 60 lines answered" in said
    assert "2  context_length_exceeded  (400)  the context is too long" in said
    assert {json.loads(line)["custom_id"] for line in output.read_bytes().splitlines()} == {
        f"r{number}" for number in range(2, LINES)
    }
    errors = [json.loads(line) for line in (directory / "out.errors.jsonl").read_bytes().splitlines()]
    assert {error["custom_id"] for error in errors} == {"r0", "r1"}
    assert errors[0]["reason"] == "context_length_exceeded: the context is too long"
    assert errors[0]["hint"]
    assert sorted(path.name for path in directory.glob("out*")) == ["out.errors.jsonl", "out.jsonl"]
    assert len(upstream.requests) == LINES
