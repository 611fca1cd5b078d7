"""Records `promptmill batch run` in a real terminal, for the batch guide: `make recording`."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fakes.gateways import environment
from fakes.terminals import CTRL_C, in_terminal
from fakes.upstream import Answer, Received, completion, failure, raw, run_upstream_in_thread
from recording.cast import Event, write_cast
from recording.picture import write_picture

DOCS = Path(__file__).parents[2] / "docs"
LINES = 4000
LIMITED = 1.0
"""Seconds for which the provider refuses calls with 429."""

COMMAND = ("batch", "run", "in.jsonl", "-o", "answers.jsonl", "-c", "config.yaml")

CONFIG = """
model_list:
  - model_name: gpt-4o-mini
    litellm_params: {{model: openai/gpt-4o-mini, api_base: "{url}", api_key: sk-recording}}
promptmill_settings: {{batch_window: 256}}
"""


def line(number: int) -> str:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": str(number)}]}
    return json.dumps({"custom_id": f"q-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})


class Provider:
    """Answers within a second; at its limit for a second, and some requests are too long for it."""

    def __init__(self) -> None:
        self._random = random.Random(4)
        self._limited_until = 0.0

    def __call__(self, received: Received) -> Answer:
        number = int(received.json["messages"][0]["content"])
        if number > LINES // 4 and not self._limited_until:
            self._limited_until = received.time + LIMITED
        if received.time < self._limited_until:
            return failure(429, "slow down", {"retry-after": "1"}, code="rate_limit_exceeded")
        if number % 300 == 7:
            return failure(400, "This model's maximum context length is 128000 tokens", code="context_length_exceeded")
        usage = {"prompt_tokens": 310, "completion_tokens": 90, "total_tokens": 400}
        pause = self._random.uniform(0.3, 0.6) + (self._random.random() < 0.02)
        whole = completion(f"answer {number}", usage=usage)
        content = json.dumps(whole).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content)
        return raw(pause, head + content)


def record(directory: Path) -> Iterator[Event]:
    """Yield what a terminal shows: the command, Ctrl-C half-way, and the command once more."""
    at = 0.0
    for interrupts in (True, False):
        for text in ("$ ", *" ".join(("promptmill", *COMMAND)), "\r\n"):
            yield at, text
            at += 0.03
        with in_terminal(*COMMAND, cwd=directory, environment=environment()) as terminal:
            if interrupts:
                terminal.wait_for(lambda shown: any(f" {count}," in shown for count in (2, 3)) and "eta" in shown, 120)
                terminal.press(CTRL_C)
            terminal.end(120)
        for after, text in terminal.output:
            yield at + after, text
        at += terminal.output[-1][0] + 1.5
    yield at, "$ "
    yield at + 3.0, ""


def main() -> None:
    with tempfile.TemporaryDirectory() as name, run_upstream_in_thread() as upstream:
        directory = Path(name)
        upstream.default = Provider()
        (directory / "config.yaml").write_text(CONFIG.format(url=upstream.url))
        (directory / "in.jsonl").write_text("".join(f"{line(number)}\n" for number in range(LINES)))
        events = list(record(directory))
    assert name not in "".join(text for _, text in events)
    write_cast(DOCS / "batch-run.cast", events)
    write_picture(DOCS / "batch-run.svg", events)


if __name__ == "__main__":
    main()
