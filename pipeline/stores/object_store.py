"""The object store that `storage` names: how it is reached, and whether it does what is needed of it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import anyio
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

from pipeline.errors import ConfigurationError
from pipeline.stores.object_calls import reason
from pipeline.stores.objects import ObjectBlobs

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CLIENT: Final[Mapping[str, str]] = {"connect_timeout": "5s", "timeout": "30s"}
"""For a whole request, with its body."""

CLIENT_OPTIONS: Final = frozenset(
    [*CLIENT, "allow_http", "allow_invalid_certificates", "proxy_url", "proxy_excludes", "root_certificate"]
)
"""Those of `storage_options` that are for the HTTP client; the others are for the dialect of the store."""

RETRIES: Final[Any] = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=5),
        "base": 2,
    },
}

PATIENCE: Final = 10.0
"""Seconds a process waits at its start for a store that does not answer."""

REFUSALS: Final = ("redirected:", "400", "401", "403", "404", "405", "501")
"""Answers that will be the same next time."""


def places(url: str, options: Mapping[str, str]) -> tuple[ObjectBlobs, ObjectBlobs]:
    """Return the blobs of files and of batches. Raises ConfigurationError."""
    store = connect(url, options)
    return ObjectBlobs(store, "files"), ObjectBlobs(store, "batches")


def connect(url: str, options: Mapping[str, str]) -> ObjectStore:
    """Return the store at `url`, with credentials of the environment or the platform. Raises ConfigurationError."""
    client = {name: value for name, value in options.items() if name in CLIENT_OPTIONS}
    config: Any = {name: value for name, value in options.items() if name not in CLIENT_OPTIONS}
    client_options: Any = {**CLIENT, **client}
    try:
        return from_url(url, config=config, client_options=client_options, retry_config=RETRIES)
    except (BaseError, ValueError, OSError) as error:
        first, *_ = str(error).splitlines() or [type(error).__name__]
        raise ConfigurationError(
            f"storage {url} cannot be used: {first}",
            hint="storage_options has the options of obstore for such a store, by their names there",
        ) from None


async def prove(url: str, options: Mapping[str, str]) -> str:
    """
    Write, create conditionally, read and delete an object; return why it is not known that this works, or nothing.

    Raises ConfigurationError where it will not work: a wrong bucket, missing permissions, or a store that creates
    what is there already, so that two processes would own one batch.
    """
    store, key = connect(url, options), f"proof/{secrets.token_hex(8)}"
    try:
        with anyio.fail_after(PATIENCE):
            keeps_conditions = await _try_out(store, key)
    except TimeoutError:
        return f"storage {url} does not answer, or there are no credentials for it"
    except (BaseError, OSError) as error:
        said = reason(error)
        if not any(word in REFUSALS for word in said.split()):
            return f"storage {url} fails ({said})"
        raise ConfigurationError(
            f"storage {url} refuses what is needed ({said})",
            hint="the bucket must exist, and its credentials must allow to get, put, list and delete objects",
        ) from None
    if not keeps_conditions:
        raise ConfigurationError(
            f"storage {url} creates an object that is there already (it ignores If-None-Match), "
            "so two processes would own one batch",
            hint="use a store, or a version of it, that has conditional writes",
        )
    return ""


async def _try_out(store: ObjectStore, key: str) -> bool:
    """Do what will be done with files and batches; return whether what is there already is not created again."""
    await obstore.put_async(store, key, b"1", mode="create")
    try:
        await obstore.put_async(store, key, b"2", mode="create")
        keeps_conditions = False
    except AlreadyExistsError:
        keeps_conditions = True
    await obstore.get_range_async(store, key, start=0, length=1)
    await obstore.list_with_delimiter_async(store, "proof")
    await obstore.delete_async(store, key)
    return keeps_conditions
