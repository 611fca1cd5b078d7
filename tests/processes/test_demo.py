"""The first five minutes: `promptmill demo`, its curl line, a second start, and what is left after Ctrl-C."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes.gateways import Gateway, alive, environment

pytestmark = pytest.mark.processes

SECOND_START = 15.0
"""Seconds; one or two on a machine with nothing else to do, but tests share theirs."""


@contextmanager
def demo(directory: Path) -> Iterator[Gateway]:
    """Run the demo on a data directory, and end it in the end, whatever the test did."""
    output = directory / "demo.log"
    command = [sys.executable, "-P", "-m", "pipeline", "demo", "--port", "0", "--data-dir", str(directory / "data")]
    with output.open("wb") as stream:
        process = subprocess.Popen(command, cwd=directory, env=environment(traced=True), stdout=stream, stderr=stream)
    gateway = Gateway(process, output)
    try:
        gateway.wait_until_ready()
        yield gateway
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(45)


def printed_command(log: str) -> list[str]:
    """Return the words of the command that the first screen tells people to try."""
    found = re.search(r"^ *try +(curl (?:.*\\\n)*.*)$", log, re.MULTILINE)
    assert found is not None, log
    return shlex.split(found[1].replace("\\\n", " "))


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_the_demo_answers_the_curl_it_prints_and_leaves_nothing_after_ctrl_c(tmp_path: Path) -> None:
    with demo(tmp_path) as gateway:
        done = subprocess.run(
            [*printed_command(gateway.log), "--noproxy", "*", "--silent", "--show-error"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "system: Be a good Bot!\nuser: hi"
        children = gateway.children()
        assert len(children) == 7
        assert gateway.stop() == 0
    assert not any(alive(pid) for pid in children)
    left = [path.name for path in (tmp_path / "data").rglob("*")]
    assert not [name for name in left if name.endswith((".lock", ".sock", ".pid"))]
    began = time.monotonic()
    with demo(tmp_path) as gateway:
        seconds = time.monotonic() - began
        assert gateway.stop() == 0
    print(f"second start: ready after {seconds:.2f} s")
    assert seconds < SECOND_START
