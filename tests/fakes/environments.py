"""Throw-away virtual environments with real client SDKs, installed from hash-pinned files and kept for the next run."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from fakes import npm

ROOT: Final = Path(__file__).parent.parent.parent
REQUIREMENTS: Final = ROOT / "tests" / "sdk" / "requirements"
SCRIPTS: Final = ROOT / "tests" / "sdk" / "scripts"
VARIABLE: Final = "PROMPTMILL_TEST_VENVS"
COMPLETE: Final = "complete"
"""File in an environment whose installation came to its end."""


class Environments:
    """All environments, made two at a time from the first use on: `python(name)` waits for one."""

    def __init__(self, names: Sequence[str]) -> None:
        self._pool = ThreadPoolExecutor(2)  # pip is busy with one core
        self._scripts: dict[tuple[str, str], Script] = {}
        self._made: dict[str, Future[Path]] = {name: self._pool.submit(make, name) for name in names}

    def python(self, name: str) -> Path:
        """Return the interpreter of an environment. Raises AssertionError when it cannot be made."""
        return self._made[name].result()

    def run(self, name: str, script: str, task: Any, *, timeout: float = 60) -> Any:
        """Send `task` to a script of `tests/sdk/scripts`, which is started once, and return what it answers."""
        if (name, script) not in self._scripts:
            python = self.python(name)
            if script.endswith(".cjs"):
                home = python.parents[1]
                started = Script(npm.node(home), SCRIPTS / script, NODE_PATH=str(home / npm.PACKAGES))
            else:
                started = Script(python, SCRIPTS / script)
            self._scripts[name, script] = started
        return self._scripts[name, script].run(task, timeout)

    def close(self) -> None:
        """End the scripts, and wait for what is being installed; nothing is begun any more."""
        for script in self._scripts.values():
            script.close()
        self._pool.shutdown(cancel_futures=True)


class Script:
    """A running script that takes a line of JSON and answers with one: importing an SDK takes seconds."""

    def __init__(self, runner: Path, script: Path, **variables: str) -> None:
        self._name = script.name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [runner, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=client_variables() | variables,
        )

    def run(self, task: Any, timeout: float) -> Any:
        """Return the answer to `task`. Raises AssertionError when there is none within `timeout` seconds."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        print(json.dumps(task), file=stdin, flush=True)
        ready, _, _ = select.select([stdout], [], [], timeout)
        line = stdout.readline() if ready else ""
        if not line:
            self._process.kill()
            self._errors.seek(0)
            raise AssertionError(f"{self._name} gave no answer within {timeout} s:\n{self._errors.read()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        with self._errors, self._process:
            self._process.kill()


def client_variables() -> dict[str, str]:
    """Return this process's variables without those that tell a client where to go, or how to run."""
    unwanted = ("OPENAI_", "COVERAGE_", "LANGCHAIN_", "LANGSMITH_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(unwanted)}
    return kept | {"NO_PROXY": "127.0.0.1,0.0.0.0,localhost", "no_proxy": "127.0.0.1,0.0.0.0,localhost"}


def names() -> list[str]:
    """Return the names of the environments there are requirements for."""
    return sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))


def make(name: str) -> Path:
    """Make an environment unless it is there, and return its interpreter; other processes wait meanwhile."""
    requirements = REQUIREMENTS / f"{name}.txt"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    pins = requirements.with_suffix(".npm")
    wanted = version.encode() + requirements.read_bytes() + (pins.read_bytes() if pins.exists() else b"")
    digest = hashlib.sha256(wanted).hexdigest()[:12]
    home = Path(os.environ.get(VARIABLE) or ROOT / ".venvs")
    directory = home / f"{name}-{digest}"
    home.mkdir(parents=True, exist_ok=True)
    with (home / f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / COMPLETE).exists():
            shutil.rmtree(directory, ignore_errors=True)
            _install(directory, requirements)
            if pins.exists():
                npm.install(directory, pins)
            (directory / COMPLETE).touch()
    return directory / "bin" / "python"


def _install(directory: Path, requirements: Path) -> None:
    """Fill an environment with the pip of this one: it needs none of its own, and no byte code nobody runs."""
    python = directory / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    _do([sys.executable, "-m", "venv", "--without-pip", str(directory)], requirements)
    _do([*pip, "install", "--quiet", "--no-compile", "--require-hashes", "-r", str(requirements)], requirements)


def _do(command: list[str], requirements: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (
        f"the SDK tests need the packages of {requirements.relative_to(ROOT)}, and they cannot be installed; "
        f"make a package index reachable for pip, or let {VARIABLE} name a directory of environments made elsewhere. "
        f"pip's last words:\n{done.stderr[-2000:]}"
    )
