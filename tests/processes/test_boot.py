"""What ends a start with status 2 and a remedy, and what must not end it."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import httpx2
import pytest
from fakes.gateways import CONFIG, MANAGER, promptmill, start_gateway

pytestmark = pytest.mark.processes

WITH_MANAGER = CONFIG + "litellm_settings: {callbacks: mine.mine}\n"


def refused(directory: Path, *arguments: str, config: str = CONFIG, **variables: str) -> str:
    """Run `up`, which must end with status 2 and no traceback, and return what it says."""
    (directory / "config.yaml").write_text(config)
    done = promptmill("up", "-c", "config.yaml", "--port", "0", *arguments, cwd=directory, **variables)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "ready " not in done.stderr
    assert not done.stdout
    left = [path.name for path in (directory / ".promptmill").rglob("*") if path.suffix in (".lock", ".sock")]
    assert not left
    return done.stderr


def test_a_callback_file_that_is_missing_ends_the_start(tmp_path: Path) -> None:
    assert "mine" in refused(tmp_path, config=WITH_MANAGER)


def test_a_callback_that_would_guard_requests_elsewhere_ends_the_start(tmp_path: Path) -> None:
    guard = "    async def async_pre_call_hook(self, *args, **kwargs):\n        raise ValueError\n\nmine = Mine()"
    (tmp_path / "mine.py").write_text(MANAGER.replace("mine = Mine()", guard))
    said = refused(tmp_path, config=WITH_MANAGER)
    assert "async_pre_call_hook" in said
    assert "accept_ignored" in said


def test_a_callback_that_ends_its_process_ends_the_start_in_words(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import os\n\nmine = None\nos._exit(7)\n")
    assert "status 7" in refused(tmp_path, config=WITH_MANAGER)


def test_an_address_that_others_reach_needs_a_key(tmp_path: Path) -> None:
    assert "PROMPTMILL_MASTER_KEY" in refused(tmp_path, "--host", "0.0.0.0")


def test_a_busy_port_ends_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        said = refused(tmp_path, "--port", port)
    assert f"port {port} on 127.0.0.1 is in use" in said
    assert "--port" in said


def test_a_data_directory_that_cannot_be_written_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refused(tmp_path, "--data-dir", str(tmp_path / "file" / "data"))
    assert "--data-dir" in said
    assert "PROMPTMILL_DATA_DIR" in said


def test_a_place_of_the_server_that_cannot_be_written_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / ".promptmill").mkdir()
    (tmp_path / ".promptmill" / "valkey").write_text("")
    assert "PROMPTMILL_DATA_DIR" in refused(tmp_path)


def test_a_server_that_does_not_start_ends_the_start_with_its_own_words(tmp_path: Path) -> None:
    appended = tmp_path / ".promptmill" / "valkey" / "appendonlydir"
    appended.mkdir(parents=True)
    (appended / "appendonly.aof.manifest").write_text("garbage\n")
    said = refused(tmp_path)
    assert "the embedded server does not start" in said
    assert "manifest" in said


def test_a_process_that_refuses_its_configuration_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text("other: promptmill worker nowhere\n")
    said = refused(tmp_path)
    assert "other.1    | promptmill: there is no stage 'nowhere'" in said
    assert "other.1 cannot run as configured" in said


def test_a_configuration_that_is_missing_ends_the_start(tmp_path: Path) -> None:
    done = promptmill("--config", "none.yaml", cwd=tmp_path)
    assert (done.returncode, "none.yaml" in done.stderr) == (2, True)


def test_a_gateway_without_ingress_cannot_have_more_of_it(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text("d: promptmill worker dispatch\n")
    assert "has no ingress" in refused(tmp_path, "--num_workers", "2")


def test_a_stage_without_a_process_is_told_and_is_not_ready(tmp_path: Path) -> None:
    with start_gateway(tmp_path, "--scale", "dispatch=0", traced=True) as gateway:
        assert "no process here works on dispatch" in gateway.log
        assert httpx2.get(f"{gateway.url}/health/readiness", trust_env=False).status_code == 503


def test_a_command_that_is_none_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text("ingress: promptmill ingress\ndispatch: promptmill work dispatch\n")
    assert "'dispatch' runs `promptmill work`" in refused(tmp_path)


def test_awkward_surroundings_do_not_keep_it_from_starting(tmp_path: Path) -> None:
    """A foreign Procfile, a long data directory, and a `pipeline.py` where it is started."""
    touched = tmp_path / "touched"
    (tmp_path / "Procfile").write_text(f"web: touch {touched}\n")
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    for name in ("pipeline.py", "workers.py", "ingress.py", "redis.py"):
        (cwd / name).write_text("raise RuntimeError('not ours')\n")
    data = tmp_path / ("d" * 130)
    with start_gateway(tmp_path, "--data-dir", str(data), cwd=cwd, traced=True) as gateway:
        assert gateway.ask() == "user: hi"
        assert "Procfile is not run" in gateway.log
        found = re.search(r"\((/.+)/valkey.sock\)", gateway.log)
        assert found
        assert Path(found[1]).exists()
    assert not Path(found[1]).exists()
    assert not touched.exists()
    assert gateway.process.returncode == 0
