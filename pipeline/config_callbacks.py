"""`litellm_settings.callbacks`: the paths, and whether what they name is there, found out without running any of it."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Final

import msgspec

from pipeline.config_keys import CONTROL_CALLBACKS, LOGGING_CALLBACKS
from pipeline.config_section import Section
from pipeline.settings import Callback
from pipeline.yaml_source import Node

OURS: Final = frozenset(["ingress", "pipeline", "workers"])
"""Our packages. A user's module of that name would be taken for ours, or ours for theirs."""

_MOST_FILES: Final = 200
_COMPREHENSIONS: Final = (ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp)
_SCOPES: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, *_COMPREHENSIONS)
_DYNAMIC: Final = frozenset(["globals", "vars", "locals", "exec", "eval", "setattr", "__import__"])


class Names(msgspec.Struct, frozen=True):
    """What a module's source defines at its top level."""

    classes: frozenset[str]
    others: frozenset[str]
    dynamic: bool
    """It also defines names in a way that only running it would tell: `from x import *`, `globals()`, `__getattr__`."""


def read_callbacks(litellm: Section, directory: Path) -> tuple[Callback, ...]:
    """Return the callbacks in order; a missing file or name is an error that says where the name is defined."""
    found: dict[str, Callback] = {}
    node = litellm.raw("callbacks")
    items = node.value if node is not None and isinstance(node.value, list) else [node]
    for item, path in zip(items, litellm.texts("callbacks"), strict=False):
        if path in found:
            litellm.context.problems.notice(item, f"litellm_settings.callbacks: {path} is there twice; it runs once")
        elif "." not in path:
            _built_in(litellm, item, path)
        elif problem := _refused(path) or _unreadable(directory, path):
            litellm.context.problems.error(item, f"litellm_settings.callbacks: {problem}")
        else:
            found[path] = Callback(path=path, file=item.file, line=item.line)
    return tuple(found.values())


def namesakes(directory: Path) -> tuple[str, ...]:
    """Return the files beside the configuration that an import could take for one of our packages."""
    return tuple(f"{name}.py" for name in sorted(OURS) if (directory / f"{name}.py").is_file())


def source_file(directory: Path, path: str) -> Path | None:
    """Return the file that defines the callback `path`: beside the configuration, else of an importable module."""
    parts = path.split(".")[:-1]
    for candidate in (directory.joinpath(*parts).with_suffix(".py"), directory.joinpath(*parts, "__init__.py")):
        if candidate.is_file():
            return candidate
    spec = _spec(parts)
    origin = Path(spec.origin) if spec is not None and spec.origin else None
    return origin if origin is not None and origin.is_file() else None


def _built_in(litellm: Section, node: Node, name: str) -> None:
    if name in LOGGING_CALLBACKS:
        message = f"litellm_settings.callbacks: {name} is built into LiteLLM and does not run here"
        litellm.context.problems.notice(node, message)
    elif name in CONTROL_CALLBACKS:
        litellm.restricted("callbacks", name, node)
    else:
        message = (
            f"litellm_settings.callbacks: {name!r} names no object; give `file.object`, like {name}.prompt_management"
        )
        litellm.context.problems.error(node, message)


def _refused(path: str) -> str:
    """Return why a path is not looked for at all, or an empty text."""
    parts = path.split(".")
    if "/" in path or "\\" in path or " " in path or "," in path or not all(parts):
        return f"{path!r} is not a dotted path; give `file.object`, relative to the configuration and without slashes"
    if parts[-1] == "py":
        return f"{path!r} names a file; name the object in it: `{'.'.join(parts[:-1])}.prompt_management`"
    if parts[0] in OURS:
        return f"{parts[0]}.py has the name of a package of promptmill; rename the file and the path {path!r}"
    return ""


def _unreadable(directory: Path, path: str) -> str:
    """Return why the object of a path cannot be had, or an empty text."""
    try:
        return _missing(directory, path)
    except OSError as error:
        return f"the file of {path!r} cannot be read ({error.strerror}); put it where it can"


def _missing(directory: Path, path: str) -> str:
    """Return what is not there of `path`, and where its name is defined instead; an empty text when all is there."""
    *parts, attribute = path.split(".")
    file = source_file(directory, path)
    if file is None:
        spec = _spec(parts)
        if spec is not None and spec.origin is not None:  # built in: only importing it would tell more
            return ""
        return f"{'/'.join(parts)}.py not found in {directory}; {_elsewhere(directory, attribute)}"
    try:
        names = defined(file)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        return f"{file.name}:{line} is not Python: {getattr(error, 'msg', error)}; correct it"
    if attribute in names.others or names.dynamic:
        return ""
    if attribute in names.classes:
        return f"{file.name}: `{attribute}` is a class; make an instance of it at the file's end and name that"
    return f"{file.name} has no top-level name `{attribute}`; {_close(attribute, names)}"


def _close(attribute: str, names: Names) -> str:
    known = sorted(name for name in names.others if not name.startswith("_"))
    close = difflib.get_close_matches(attribute, known, n=3, cutoff=0.5) or known[:10]
    return f"it has {', '.join(f'`{name}`' for name in close)}" if close else "it defines no object"


def _elsewhere(directory: Path, attribute: str) -> str:
    """Return which files of the directory define `attribute`, else which files there are."""
    files = sorted(file for file in directory.glob("*.py") if file.stem not in OURS)[:_MOST_FILES]
    holding = [file for file in files if _defines(file, attribute)]
    if holding:
        return "; ".join(f"{file.name} defines `{attribute}`: name it `{file.stem}.{attribute}`" for file in holding)
    names = ", ".join(file.name for file in files)
    return (
        f"the Python files there are {names}" if names else "there is no Python file; put it beside the configuration"
    )


def _defines(file: Path, attribute: str) -> bool:
    try:
        return attribute in defined(file).others
    except (SyntaxError, ValueError, OSError):  # a file nobody named may be anything
        return False


def defined(file: Path) -> Names:
    """Return what `file` defines at its top level, by reading it. Raises SyntaxError, ValueError or OSError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a user's escape sequences, which are the user's
        tree = ast.parse(file.read_bytes(), file.name)
    classes: set[str] = set()
    others: set[str] = set()
    dynamic = any(isinstance(node, ast.Name) and node.id in _DYNAMIC for node in ast.walk(tree))
    for node in _top_level(tree):
        if isinstance(node, ast.ClassDef):
            classes.add(node.name)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            others.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            others.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            others.add(node.id)
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            others.update(node.names)
    dynamic = dynamic or bool({"*", "__getattr__"} & others)
    return Names(frozenset(classes - others), frozenset(others), dynamic)


def _top_level(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs in the module's own scope: also below `if`, `try` and `with`, not inside functions or classes."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, _SCOPES):
            yield from _top_level(child)


def _spec(parts: list[str]) -> ModuleSpec | None:
    """Return the module's spec without importing anything: `find_spec` alone would import its parent packages."""
    try:
        spec = importlib.util.find_spec(parts[0])
    except (ImportError, ValueError):
        return None
    for i in range(1, len(parts)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join(parts[: i + 1]), list(spec.submodule_search_locations))
    return spec
