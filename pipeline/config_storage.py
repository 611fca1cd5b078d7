"""Where files are kept, as `storage` and `storage_options` say it."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from pipeline.config_section import Section
from pipeline.settings import ENVIRONMENT_PREFIX, Secret, StorageSettings

_URL: Final = re.compile(r"(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)*/?", re.ASCII)
_OPTION: Final = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
_PRIVATE: Final = re.compile(r"secret|token|password|sas_key|(access|account|customer)_key", re.ASCII)


def read_storage(own: Section) -> StorageSettings:
    """Return where files are kept; the data directory unless something else is named."""
    url = own.text("storage")
    if url and not _URL.fullmatch(url):
        own.error(
            "storage",
            "not the address of a bucket; give s3://bucket/prefix, gs://bucket/prefix or az://container/prefix",
        )
    options = _options(own.section("storage_options"))
    if options and not url:
        own.error("storage_options", "there is no `storage` that they could be for; name one, or take them out")
    return StorageSettings(url=url, options=options)


def _options(section: Section) -> dict[str, Secret]:
    found: dict[str, Secret] = {}
    for name in section.unread():
        node = section.raw(name)
        if node is None or node.value is None:
            continue
        if isinstance(node.value, bool):
            node = msgspec.structs.replace(node, value=str(node.value).lower())
        value = section.as_secret(name, node)
        if not _OPTION.fullmatch(name):
            section.error(name, "not the name of an option; they have small letters, digits and `_`, as in `endpoint`")
        elif value is not None and value.variable is None and _is_private(name):
            section.error(name, f"a credential does not belong into this file; write {ENVIRONMENT_PREFIX}NAME")
        elif value is not None:
            found[name] = value
    return found


def _is_private(name: str) -> bool:
    return bool(_PRIVATE.search(name)) and not name.endswith(("_file", "_path"))
