"""The keys clients may use, and the variables a configuration sets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Final

from pipeline.catalog import Catalog
from pipeline.config_keys import BLOCKED_VARIABLE_PREFIXES, BLOCKED_VARIABLES
from pipeline.config_section import Section
from pipeline.config_units import prose
from pipeline.settings import ENVIRONMENT_PREFIX, Key, Secret, Settings
from pipeline.yaml_source import Node

MASTER: Final = "master"
MASTER_VARIABLES: Final = ("PROMPTMILL_MASTER_KEY", "LITELLM_MASTER_KEY")
"""Hold the master key where the configuration has none; the first that is set counts."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_VARIABLE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_ROTATION: Final = "give one, or two while it is rotated"


def read_variables(variables: Section) -> dict[str, str]:
    """Return `environment_variables`, resolved. Messages name the variables and leave their values out."""
    found: dict[str, str] = {}
    for name in variables.unread():
        if not _VARIABLE_NAME.fullmatch(name):
            variables.error(name, "not a variable's name; use letters, digits and `_`")
        elif name.upper() in BLOCKED_VARIABLES or name.upper().startswith(BLOCKED_VARIABLE_PREFIXES):
            variables.error(
                name, "decides what a process loads and may not be set here; set it where promptmill starts"
            )
        elif (value := variables.read(name, _one_value, show=False)) is not None:
            found[name] = value
    return found


def read_keys(general: Section, own: Section, models: Settings) -> tuple[Key, ...]:
    """Return the master key, then those of `promptmill_settings.keys`; `models` is for the names they may list."""
    master = _master(general)
    keys = [] if master is None else [master]
    names, places = own.section("keys"), {}
    catalog = Catalog(models)
    for name in names.unread():
        if (key := _key(names, name, catalog)) is not None:
            keys.append(key)
            places[name] = names.raw(name)
    _differ(keys, {MASTER: general.raw("master_key"), **places}, own)
    return tuple(keys)


def _one_value(node: Node) -> str:
    found = prose(node)
    if "\0" in found:
        raise ValueError("holds a NUL character; take it out")
    return found


def _master(general: Section) -> Key | None:
    if "master_key" not in general:
        for name in MASTER_VARIABLES:
            if general.context.environment.get(name):
                return Key(name=MASTER, values=(Secret(ENVIRONMENT_PREFIX + name),), master=True)
        return None
    values = _values(general, "master_key", general.raw("master_key"))
    for value in values:
        if value.variable and not value.reveal(general.context.environment):
            general.error(
                "master_key",
                f"the variable {value.variable} is not set, which would leave the gateway open; set it, or take it out",
            )
    return Key(name=MASTER, values=values, master=True)


def _key(names: Section, name: str, catalog: Catalog) -> Key | None:
    if not _NAME.fullmatch(name) or name == MASTER:
        names.error(name, f"cannot be a key's name; use up to 64 letters, digits and `._-`, and not {MASTER!r}")
        return None
    node = names.raw(name)
    models: tuple[str, ...] = ()
    section, field = names, name
    if node is not None and isinstance(node.value, dict):
        section, field = names.section(name), "key"
        models = _models(section, catalog)
        values = _values(section, field, section.raw("key"))
        section.close("keys")
    else:
        values = _values(names, name, node)
    for value in values:
        if value.variable and not value.reveal(names.context.environment):
            section.notice(field, f"the variable {value.variable} is not set; nobody can use this key")
    return Key(name=name, values=values, models=models) if values else None


def _values(section: Section, key: str, node: Node | None) -> tuple[Secret, ...]:
    """Return the one or two values of a key; none after noting what is wrong."""
    items = node.value if node is not None and isinstance(node.value, list) else [node]
    if not 1 <= len(items) <= 2:
        section.error(key, f"{len(items)} values; {_ROTATION}")
        return ()
    found = []
    for item in items:
        if item is None or item.value is None:
            section.error(key, f"no value; {_ROTATION}, or take the line out")
        elif (secret := section.as_secret(key, item)) is not None:
            if secret.source.lower().startswith("sha256:"):
                secret = Secret(secret.source.lower())
                if not _HASH.fullmatch(secret.source):
                    section.error(key, "not a SHA-256 hash; give `sha256:` and 64 hexadecimal digits")
            found.append(secret)
    return tuple(found)


def _models(section: Section, catalog: Catalog) -> tuple[str, ...]:
    models = section.texts("models")
    if not models and "models" in section:
        section.error("models", "lists no model; name some, or take it out to allow all")
    for name in models:
        if "*" not in name and catalog.group(name) is None:
            close = ", ".join(catalog.closest(name))
            section.notice("models", f"no model {name!r}; there is {close}" if close else f"no model {name!r}")
    return models


def _differ(keys: Iterable[Key], places: Mapping[str, Node | None], own: Section) -> None:
    """Note an error where two names share a value: whose request it is could not be told."""
    owners: dict[str, str] = {}
    for key in keys:
        for value in key.values:
            owner = owners.setdefault(_identity(value), key.name)
            if owner != key.name:
                node = places.get(key.name) or own.node
                own.context.problems.error(
                    node, f"{own.path('keys')}.{key.name}: has the same value as {owner!r}; give each name its own"
                )


def _identity(value: Secret) -> str:
    """Return what is equal for equal values, plain or hashed."""
    if value.variable or value.source.startswith("sha256:"):
        return value.source
    return "sha256:" + hashlib.sha256(value.source.encode()).hexdigest()
