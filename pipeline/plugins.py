"""What other packages bring: modules of a known package that export one object, and sub-commands."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from types import ModuleType
from typing import Any, Final

GROUP: Final = "promptmill.commands"
"""Entry points under this name are sub-commands; packages bring their own."""


def names(package: ModuleType) -> tuple[str, ...]:
    """Return the names of the modules in `package`, in order; those that start with `_` are helpers, not extensions."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")))


def load(package: ModuleType, name: str, attribute: str) -> Any:
    """Import module `name` of `package` and return its `attribute`. Raises LookupError when either is missing."""
    if name not in names(package):
        raise LookupError(f"{package.__name__} has no module {name!r}; it has {', '.join(names(package))}")
    module = importlib.import_module(f"{package.__name__}.{name}")
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise LookupError(f"{module.__name__} exports no `{attribute}`") from None


def load_all(package: ModuleType, attribute: str) -> dict[str, Any]:
    """Import every extension of `package` and return its `attribute` under the module's name."""
    return {name: load(package, name, attribute) for name in names(package)}


def commands() -> dict[str, importlib.metadata.EntryPoint]:
    """Return the sub-commands that packages registered, by name, without importing them."""
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
