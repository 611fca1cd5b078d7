"""Where files and batches are kept: in the data directory, or in an object store."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from pipeline.errors import ConfigurationError
from pipeline.settings import Settings
from pipeline.stores.blobs import Blobs
from pipeline.stores.local import LocalBlobs


class Places(NamedTuple):
    """The blobs of files, and those of batches."""

    files: Blobs
    batches: Blobs


def open_places(settings: Settings, environment: Mapping[str, str] = os.environ) -> Places:
    """Return where files and batches are. Raises ConfigurationError."""
    if settings.storage.url:
        options = _options(settings, environment)
        return Places(*_object_store().places(settings.storage.url, options))
    directory, kept = Path(settings.data_dir), settings.files.min_free_bytes
    return Places(LocalBlobs(directory / "files", keep_free=kept), LocalBlobs(directory / "batches", keep_free=kept))


def prove(settings: Settings, environment: Mapping[str, str] = os.environ) -> str:
    """
    See whether an object store does what is needed; return why that is not known now, or nothing.

    Raises ConfigurationError where it will not work. One that is merely away stops no process: live requests need none.
    """
    if not settings.storage.url:
        return ""
    options = _options(settings, environment)
    return str(anyio.run(_object_store().prove, settings.storage.url, options))


def _object_store() -> Any:
    """Return the module that needs the extra, and is only imported where it is used: that takes 50 ms."""
    try:
        return importlib.import_module("pipeline.stores.object_store")
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        raise ConfigurationError(
            "`storage` names an object store, and the package obstore is not installed",
            hint="install the extra `objects`: pip install '.[objects]' in the checkout",
        ) from None


def _options(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name, value in settings.storage.options.items():
        shown = value.reveal({**environment, **settings.environment})
        if shown is None:
            raise ConfigurationError(
                f"storage_options.{name} names the variable {value.variable}, which is not set", hint="set it"
            )
        found[name] = shown
    return found
