"""Ctrl-C while a start is under way, and a terminal that is closed: words or nothing, and no process stays."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.gateways import CONFIG, MANAGER, alive, environment
from fakes.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.anyio]

COMMAND = ["-P", "-m", "pipeline", "up", "-c", "config.yaml", "--port", "0"]


@pytest.mark.parametrize(
    ("when", "status"), [("click.core\n", -signal.SIGINT), ("promptmill 0.1.0 is starting", 0), ("describing", 0)]
)
async def test_ctrl_c_during_the_start_shows_no_traceback(tmp_path: Path, when: str, status: int) -> None:
    """The terminal sends it to every process of its foreground group, so to what the supervisor asks questions too."""
    (tmp_path / "mine.py").write_text(f"{MANAGER}\nimport os\nos.write(os.open('told', os.O_CREAT | os.O_RDWR), b'x')")
    (tmp_path / "config.yaml").write_text(CONFIG + "litellm_settings: {callbacks: mine.mine}\n")
    log = tmp_path / "log"
    with log.open("wb") as output:
        options = ["-X", "importtime"] if "click" in when else []
        process = subprocess.Popen(
            [sys.executable, *options, *COMMAND],
            cwd=tmp_path,
            env=environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    with process:
        now = (tmp_path / "told").exists if when == "describing" else lambda: when in log.read_text()
        try:
            await wait_until(now, timeout=20, every=0.001)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(20) == status
        finally:
            process.kill()
    assert "Traceback" not in log.read_text()
    assert "KeyboardInterrupt" not in log.read_text()


async def test_a_gateway_whose_terminal_is_closed_drains_and_ends(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - becomes the gateway
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, *COMMAND], environment(NO_COLOR="1"))
    said = b""
    while b"Ctrl-C" not in said:
        said += os.read(terminal, 65536)
    os.kill(pid, signal.SIGHUP)  # the terminal is there: a reload
    while b"reloaded" not in said:
        said += os.read(terminal, 65536)
    os.close(terminal)
    await wait_until(lambda: not alive(pid), timeout=20)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
