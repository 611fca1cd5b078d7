"""Loading the operator's callbacks: user files under private names, with errors that say file and line."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec

from pipeline import logs
from pipeline.config_callbacks import namesakes, source_file
from pipeline.errors import ConfigurationError
from pipeline.redaction import secrets_of
from pipeline.settings import Callback, Settings
from workers.prompts import places
from workers.prompts.managers import CONTROLS, SHOULD_RUN, Manager, inspect_manager
from workers.prompts.shim import finder

PRIVATE: Final = "_promptmill_user"
"""Package that user files are loaded into, so that none can take the name of a module of ours or of a library."""

_log = logs.logger("prompts")


class Managers(msgspec.Struct, frozen=True):
    """The prompt managers in the order of the configuration."""

    all: tuple[Manager, ...] = ()
    legs: tuple[tuple[Manager, ...], ...] = ()
    """The same, neighbours that run in the same place together: each leg is one hand-over."""


class CallbackFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What `promptmill check` and the first screen say about a callback."""

    path: str
    kind: str
    file: str
    line: int
    hook: str
    is_async: bool
    parameters: tuple[str, ...]
    should_run: int
    """How many parameters its `should_run_prompt_management` takes; 0 when it serves every prompt."""
    ignored: tuple[str, ...]


def load_managers(settings: Settings) -> Managers:
    """Import the callbacks and return them as managers; warn about hooks that do not run. Raises ConfigurationError."""
    prepare(settings.directory)
    found = [_load(callback, settings) for callback in settings.callbacks if not _is_built_in(callback)]
    for manager in found:
        for name in manager.ignored:
            _log.warning("hook does not run here", callback=manager.path, hook=name, control=name in CONTROLS)
    secrets = secrets_of(settings)
    return managers([msgspec.structs.replace(manager, secrets=secrets) for manager in found])


def managers(found: Sequence[Manager]) -> Managers:
    """Return `found` with the legs they are asked in."""
    return Managers(tuple(found), tuple(tuple(leg) for _, leg in itertools.groupby(found, key=lambda m: m.is_async)))


def inspect_callbacks(settings: Settings) -> list[CallbackFacts]:
    """Import the callbacks and return the facts about each. Raises ConfigurationError."""
    return [
        CallbackFacts(
            path=manager.path,
            kind=manager.kind,
            file=manager.file,
            line=manager.line,
            hook=manager.hook_name,
            is_async=manager.is_async,
            parameters=manager.parameters,
            should_run=len(manager.should_run_parameters),
            ignored=manager.ignored,
        )
        for manager in load_managers(settings).all
    ]


def prepare(directory: str) -> None:
    """Make the imports of user files work: LiteLLM's names, and helper modules beside the file, which come last."""
    finder.prepare()
    for name in namesakes(Path(directory)):
        raise ConfigurationError(f"{name} in {directory} has the name of our own package; rename it")
    absolute = os.path.abspath(directory)
    if absolute not in sys.path:
        sys.path.append(absolute)


def load_object(file: Path, module: str, attribute: str) -> Any:
    """Load `file` as `module` under a private name and return its `attribute`. Raises ConfigurationError."""
    name = f"{PRIVATE}.{module}"
    loaded = sys.modules.get(name)
    if loaded is None or loaded.__file__ != str(file):
        loaded = _execute(file, name)
    return _attribute(loaded, attribute, file.name)


def _load(callback: Callback, settings: Settings) -> Manager:
    module, _, attribute = callback.path.rpartition(".")
    directory = Path(settings.directory).absolute()
    file = source_file(directory, callback.path)
    if file is not None and file in _beside(directory, module):
        target = load_object(file, module, attribute)
    else:
        target = _attribute(_import(module, str(directory)), attribute, module)
    try:
        return inspect_manager(target, callback.path, settings.prompts.accept_ignored)
    except ConfigurationError as error:
        place = f"{callback.file}:{callback.line}: " if callback.file else ""
        raise ConfigurationError(f"{place}{error.message}", hint=error.hint) from None


def _beside(directory: Path, module: str) -> tuple[Path, Path]:
    base = directory.joinpath(*module.split("."))
    return base.with_suffix(".py"), base / "__init__.py"


def _execute(file: Path, name: str) -> ModuleType:
    """Run a user's file as the module `name`, which dataclasses and pickle find in `sys.modules`."""
    sys.modules.setdefault(PRIVATE, _private_package())
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{file} is not a Python file; name one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - importing a user's file may raise anything, SystemExit included
        del sys.modules[name]
        raise _broken(error, file.name, str(file.parent)) from None
    return module


def _private_package() -> ModuleType:
    package = ModuleType(PRIVATE)
    package.__path__ = []
    return package


def _import(module: str, directory: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            name = f"{module.replace('.', '/')}.py"
            raise ConfigurationError(
                f"{name} not found in {directory}, nor is there a module {module}; put it beside the configuration"
            ) from None
        raise _broken(error, module, directory) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - importing a user's module may raise anything, SystemExit included
        raise _broken(error, module, directory) from None


def _broken(error: BaseException, name: str, directory: str) -> ConfigurationError:
    """Return the error for a module that cannot be imported: the user's file and line, no traceback."""
    place = places.in_directory(places.of_error(error), directory) or name
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return ConfigurationError(f"{place}: {type(error).__name__}: {text}; correct it, or take it out of `callbacks`")


def _attribute(module: ModuleType, attribute: str, name: str) -> Any:
    try:
        return getattr(module, attribute)
    except AttributeError:
        known = sorted(n for n, value in vars(module).items() if not n.startswith("_") and _is_candidate(value))
        remedy = f"it has {', '.join(known)}" if known else "it defines no object with a prompt hook"
        raise ConfigurationError(f"{name} has no {attribute!r}; {remedy}") from None


def _is_candidate(value: object) -> bool:
    return not isinstance(value, type) and hasattr(type(value), SHOULD_RUN)


def _is_built_in(callback: Callback) -> bool:
    """Whether a callback is a bare name: one of LiteLLM's own, which do not run here."""
    if "." in callback.path:
        return False
    _log.warning("built-in callback does not run here", callback=callback.path)
    return True
