"""Rule 2 of the house style: how long modules, functions and parameter lists may be, and where imports stand."""

from __future__ import annotations

import ast
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("ingress", "workers", "pipeline")
NOT_OURS = {ROOT / "pipeline" / "demo" / "custom_prompt.py"}  # word for word from LiteLLM's page
MODULES = sorted(m for package in PACKAGES for m in (ROOT / package).rglob("*.py") if m not in NOT_OURS)

MODULE_LINES = 400
FUNCTION_LINES = 50
PARAMETERS = 6

Function = ast.FunctionDef | ast.AsyncFunctionDef


TOP = {
    *(".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "Makefile", "Procfile", "README.md", "SECURITY.md"),
    *("benchmarks", "docs", "examples", "ingress", "pipeline", "pyproject.toml", "requirements", "tests", "workers"),
}


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def problems(source: str) -> list[str]:
    """Return what breaks the rules, as `line: what`."""
    tree, found = ast.parse(source), []
    if (length := len(source.splitlines())) >= MODULE_LINES:
        found.append(f"1: module of {length} lines")
    for function in functions(tree):
        length = (function.end_lineno or 0) - function.lineno + 1
        if length >= FUNCTION_LINES:
            found.append(f"{function.lineno}: {function.name} of {length} lines")
        found += [f"{line}: first-party import inside {function.name}" for line in imports(function)]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for function in node.body:
                if (
                    isinstance(function, Function)
                    and function.name == "__init__"
                    and (n := parameters(function)) > PARAMETERS
                ):
                    found.append(f"{function.lineno}: constructor of {node.name} with {n} parameters")
    return found


def parameters(function: Function) -> int:
    arguments = function.args
    named = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs) - 1
    return named + (arguments.vararg is not None) + (arguments.kwarg is not None)


def imports(function: Function) -> Iterator[int]:
    for node in ast.walk(function):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or PACKAGES[0]] if node.level == 0 else [PACKAGES[0]]
        if any(name.partition(".")[0] in PACKAGES for name in names):
            yield node.lineno


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_a_module_keeps_the_size_rules(module: Path) -> None:
    assert not problems(module.read_text())


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_a_module_says_in_one_sentence_what_it_is_for(module: Path) -> None:
    assert (ast.get_docstring(ast.parse(module.read_text())) or "").strip()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no checkout")
def test_nothing_stray_lies_at_the_top() -> None:
    git = shutil.which("git")
    assert git is not None
    tracked = subprocess.run([git, "ls-tree", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    assert set(tracked.decode().split()) == TOP


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("x = 1\n" * 400, "module of 400 lines"),
        ("def f():\n" + "    x = 1\n" * 50, "f of 51 lines"),
        ("class C:\n    def __init__(self, a, b, c, d, e, f, *, g): ...\n", "constructor of C with 7 parameters"),
        ("def f():\n    from pipeline import job\n", "first-party import inside f"),
        ("async def f():\n    import workers.stages\n", "first-party import inside f"),
        ("def f():\n    from . import job\n", "first-party import inside f"),
    ],
)
def test_the_rules_notice_what_breaks_them(source: str, problem: str) -> None:
    assert problem in str(problems(source))
