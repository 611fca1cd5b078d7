"""S53, S55, S57: what is installed, and code that would run what it reads."""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [path for package in ("ingress", "pipeline", "workers") for path in (ROOT / package).rglob("*.py")]
SCRIPTS = sorted((ROOT / "pipeline" / "transport" / "scripts").glob("*.lua"))
LOCKS = [ROOT / "requirements" / "runtime.txt", ROOT / "requirements" / "dev.txt"]

FIXED_SINCE: dict[str, tuple[int, ...]] = {
    "starlette": (1, 3, 1),  # CVE-2026-48710: the Host header decided about authentication
    "h11": (0, 16, 0),  # CVE-2025-43859: chunks that ended otherwise; uvicorn brings it, nothing here uses it
    "httptools": (0, 8),  # llhttp 9.3
    "python-multipart": (0, 0, 22),  # CVE-2024-53981: a boundary that takes for ever; CVE-2026-24486: paths of uploads
}

KNOWN_PATHS = {
    "_editable_impl_promptmill.pth": r"^import _editable_impl_promptmill$",
    "a1_coverage.pth": r"^import sys; ?exec\(.*coverage",  # a tool of the tests: it is in no lock of the runtime
    "distutils-precedence.pth": r"^import os; var = 'SETUPTOOLS_USE_DISTUTILS'",  # of `python -m venv`, before 3.12
}
"""What may run code when an interpreter starts, and what it says. The attack on LiteLLM's packages was such a file."""


def locked(path: Path) -> dict[str, str]:
    """Return the entries of a lock: name and everything up to the next one."""
    return {
        found[1].lower(): found[0]
        for found in re.finditer(r"^([\w.-]+)==.*?(?=^[\w.-]+==|\Z)", path.read_text(), re.M | re.S)
    }


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_s57_every_package_is_pinned_by_version_and_hash(path: Path) -> None:
    entries = locked(path)
    assert len(entries) > 10
    assert [line for line in path.read_text().splitlines() if re.match(r"[\w.-]+", line) and "==" not in line] == []
    assert [name for name, entry in entries.items() if "--hash=sha256:" not in entry] == []
    assert not re.search(r"^\s*(-e|--extra-index-url|--index-url|--trusted-host|git\+)", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", FIXED_SINCE)
@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_s57_no_package_is_older_than_its_last_known_hole(path: Path, name: str) -> None:
    assert version(locked(path)[name].partition("==")[2]) >= FIXED_SINCE[name]
    assert version(metadata.version(name)) >= FIXED_SINCE[name]


@pytest.mark.parametrize("name", ["starlette", "httptools", "python-multipart"])
def test_s57_who_installs_without_the_lock_gets_none_either(name: str) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (found,) = [entry for entry in wanted if re.match(rf"{name}\b", entry)]
    assert version(found.partition(">=")[2]) >= FIXED_SINCE[name]


@pytest.mark.parametrize("name", ["jinja2", "requests", "setuptools", "pip"])
def test_s57_what_is_not_needed_is_not_there(name: str) -> None:
    assert name not in locked(LOCKS[0])


def test_s57_nothing_unknown_runs_when_an_interpreter_starts() -> None:
    here = Path(sysconfig.get_path("purelib"))
    assert Path(sys.prefix) in here.parents
    for path in here.glob("*.pth"):
        for line in path.read_text().splitlines():
            if line.startswith(("import ", "import\t")):
                assert re.match(KNOWN_PATHS.get(path.name, "nothing"), line), f"{path.name}: {line[:200]}"
    assert not (here / "sitecustomize.py").exists()
    assert not (here / "usercustomize.py").exists()


def test_s53_nothing_that_is_read_is_ever_run() -> None:
    forbidden = {"pickle", "marshal", "shelve", "dill", "jsonpickle", "jinja2"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not {alias.name.partition(".")[0] for alias in node.names} & forbidden, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in forbidden, path
            elif isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "yaml.load", "os.system", "os.popen"), f"{path}:{node.lineno}"
                assert "shell=True" not in ast.unparse(node), f"{path}:{node.lineno}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_s55_a_script_takes_its_arguments_as_values_and_makes_no_code(script: Path) -> None:
    code = re.sub(r"--.*", "", script.read_text())
    assert not re.search(r"\b(loadstring|load|dofile|require|setfenv)\s*\(", code)
    assert not re.search(r"redis\.p?call\(\s*(ARGV|KEYS|\w+\s*\.\.)", code), "the command itself is no input"
    for call in re.findall(r"redis\.p?call\(\s*([^,)]+)", code):
        written = (
            re.search(r"local command = \{('[A-Z]+')", code)
            if call == "unpack(command"
            else re.match(r"('[A-Z]+')$", call)
        )
        assert written, call


def test_s55_scripts_are_files_and_never_put_together() -> None:
    assert len(SCRIPTS) > 5
    for path in SOURCES:
        assert not re.search(r"redis\.p?call", path.read_text()), path
