"""Ctrl-C while a start is under way, and a terminal that is closed: words or nothing, and no process stays."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes.gateways import CONFIG, MANAGER, Gateway, environment
from fakes.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.anyio]

COMMAND = ["-P", "-m", "pipeline", "up", "-c", "config.yaml", "--port", "0"]


@contextmanager
def starting(directory: Path, *options: str) -> Iterator[Gateway]:
    """Start a gateway as the leader of its group, like a shell does."""
    (directory / "mine.py").write_text(f"{MANAGER}\nimport os\nos.close(os.open('imported', os.O_CREAT))\n")
    (directory / "config.yaml").write_text(CONFIG + "litellm_settings: {callbacks: mine.mine}\n")
    log, command = directory / "log", [sys.executable, *options, *COMMAND]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, cwd=directory, env=environment(traced=True), stdout=output, stderr=output, start_new_session=True
        ) as process,
    ):
        try:
            yield Gateway(process, log)
        finally:
            process.kill()


@pytest.mark.parametrize(("when", "status"), [("click.core\n", -signal.SIGINT), ("is starting", 0)])
async def test_ctrl_c_during_the_start_shows_no_traceback(tmp_path: Path, when: str, status: int) -> None:
    with starting(tmp_path, *(["-X", "importtime"] if "click" in when else [])) as gateway:
        await wait_until(lambda: when in gateway.log, timeout=20, every=0.001)
        os.killpg(gateway.process.pid, signal.SIGINT)
        await wait_until(lambda: gateway.process.poll() is not None, timeout=20)
    assert gateway.process.returncode == status
    assert "Traceback" not in gateway.log
    assert "KeyboardInterrupt" not in gateway.log


async def test_ctrl_c_reaches_the_supervisor_alone(tmp_path: Path) -> None:
    """The terminal sends it to the whole group, and who imports callbacks there would show a traceback."""
    with starting(tmp_path) as gateway:
        await wait_until((tmp_path / "imported").exists, timeout=20, every=0.001)
        children = gateway.children()
        assert children
        assert gateway.process.pid not in {os.getpgid(pid) for pid in children}


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
    os.kill(pid, signal.SIGHUP)  # the kernel has sent one, and a shell would send another
    ended: list[int] = []

    def gone() -> bool:
        ended[:] = os.waitpid(pid, os.WNOHANG)
        return ended[0] == pid

    await wait_until(gone, timeout=20)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
