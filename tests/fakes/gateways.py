"""A whole gateway, run by `promptmill up` as people run it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONFIG = """
model_list:
  - model_name: gpt-4
    litellm_params: {model: echo/echo}
"""

MANAGER = """
from litellm.integrations.custom_prompt_management import CustomPromptManagement

class Mine(CustomPromptManagement):
    def get_chat_completion_prompt(
        self, model, messages, non_default_params, prompt_id, prompt_variables, dynamic_callback_params
    ):
        return model, [{"role": "system", "content": "from mine"}, *messages], non_default_params

mine = Mine()
"""


def model_list(url: str, *names: str) -> str:
    """Return the part of a configuration that serves models, by default gpt-4, from an upstream."""
    where = f"api_base: '{url}', api_key: sk-upstream"
    served = (f"model_name: {name}, litellm_params: {{model: openai/{name}, {where}}}" for name in names or ["gpt-4"])
    return "model_list:\n" + "".join(f"  - {{{model}}}\n" for model in served)


def environment(*, traced: bool = False, **more: str) -> dict[str, str]:
    """
    Return this process's environment without anything that says something to a gateway.

    Processes under load are not `traced` for the coverage: that doubles what they cost, and nobody ships it.
    """
    unwanted = ["REDIS_URL", "PORT", "NUM_WORKERS", "LITELLM_MASTER_KEY"]
    unwanted += [] if traced else ["COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"]
    kept = {k: v for k, v in os.environ.items() if k not in unwanted and not k.startswith("PROMPTMILL_")}
    return {**kept, **more}


def promptmill(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return it, with its output."""
    command = [sys.executable, "-P", "-m", "pipeline", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment(traced=True, **more), capture_output=True, text=True, timeout=60, check=False
    )


class Gateway:
    """A gateway that is up; `log` is all it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output
        self.url = ""

    @property
    def log(self) -> str:
        return self._output.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        limit = time.monotonic() + 45
        while not (found := re.search(r"ready +(http://\S+)/v1", self.log)):
            assert self.process.poll() is None, f"it ended with status {self.process.returncode}:\n{self.log}"
            assert time.monotonic() < limit, f"it is not ready:\n{self.log}"
            time.sleep(0.02)  # blocking on purpose: fixtures of any scope use this, with no event loop
        self.url = found[1]

    def ask(self, timeout: float = 20, key: str = "any", **fields: Any) -> str:
        """Send a chat request and return the content of the answer."""
        body = {"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}], **fields}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return str(json.load(answer)["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{error.code}: {error.read().decode()}") from None

    def children(self) -> dict[int, str]:
        """Return the processes it started, by id, with their command lines."""
        return {pid: command for pid, parent, command in _processes() if parent == self.process.pid}

    def child(self, words: str) -> int:
        """Return the one process whose command line holds `words`; 0 while there is none."""
        return next((pid for pid, command in self.children().items() if words in command), 0)

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(45)


def alive(pid: int) -> bool:
    return any(pid == other for other, _, _ in _processes())


def _processes() -> Iterator[tuple[int, int, str]]:
    """Yield id, parent and command line of every process that is not a zombie."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it ended meanwhile
                continue
            if state not in "ZX":
                yield int(entry.name), int(parent), command


@contextmanager
def start_gateway(
    directory: Path,
    *arguments: str,
    config: str = CONFIG,
    cwd: Path | None = None,
    variables: Mapping[str, str] = {},
    python: str = sys.executable,
    traced: bool = False,
) -> Iterator[Gateway]:
    """Run `promptmill up` on `config` in `directory`, on a free port, and end it in the end, whatever the test did."""
    (directory / "config.yaml").write_text(config)
    output = directory / "output.log"
    command = [python, "-P", "-m", "pipeline", "--config", str(directory / "config.yaml"), "--port", "0"]
    with output.open("wb") as stream:
        env = environment(traced=traced, **variables)
        process = subprocess.Popen([*command, *arguments], cwd=cwd or directory, env=env, stdout=stream, stderr=stream)
    gateway = Gateway(process, output)
    try:
        gateway.wait_until_ready()
        yield gateway
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(45)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
