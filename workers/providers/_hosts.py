"""The OpenAI-compatible hosts of `hosts.toml`, and how a deployment on one of them is called."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from pipeline.errors import ModelDisabled
from pipeline.operations import OPERATIONS
from pipeline.redaction import LEAST, credentials, forms
from pipeline.settings import ENVIRONMENT_PREFIX, Deployment, Secret
from workers.providers._dialect import Endpoint


class Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of `hosts.toml`."""

    operations: tuple[str, ...]
    api_base: str = ""
    key: str = ""
    """The variable its key comes from; empty: it knows no keys."""
    key_required: bool = True
    path: str = ""
    """Where the API is on an `api_base` that is a bare address; empty: there."""


def read_hosts() -> dict[str, Host]:
    """Return the rows of `hosts.toml` by prefix."""
    text = Path(__file__).with_name("hosts.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, Host])


def endpoint(prefix: str, host: Host, deployment: Deployment, environment: Mapping[str, str]) -> Endpoint:
    """Return how `deployment` is called on `host`. Raises ModelDisabled when its key or its address is missing."""
    key = _key(host, deployment, environment)
    base = _base(prefix, host, deployment)
    headers = {"Content-Type": "application/json", "User-Agent": "promptmill"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    if deployment.organization:
        headers["OpenAI-Organization"] = deployment.organization
    for name, value in deployment.headers.items():
        # One header of a name: an operator's `authorization` replaces ours whatever its case.
        headers = {known: kept for known, kept in headers.items() if known.lower() != name.lower()}
        headers[name] = value
    for name, value in headers.items():
        if not (name.isascii() and name.isprintable() and value.isprintable()):
            raise ModelDisabled(
                f"model {deployment.model_name!r} is not usable: its key or a header has characters no header may have",
                hint="look for a line break or another control character in its `api_key` and `extra_headers`",
            )
    urls = {operation: base + OPERATIONS[operation].path for operation in host.operations}
    return Endpoint(prefix=prefix, urls=urls, headers=headers, secrets=_secrets(key, deployment))


def _secrets(key: str, deployment: Deployment) -> tuple[str, ...]:
    """Return what a provider must not tell: an operator's header may be a key as well, with its scheme or without."""
    headers = [part for value in deployment.headers.values() for part in (value, value.rpartition(" ")[2])]
    found = [*headers, *credentials(deployment.api_base or "")]
    return forms([key, *(value for value in found if len(value) >= LEAST)])


def _key(host: Host, deployment: Deployment, environment: Mapping[str, str]) -> str:
    source = deployment.api_key or (Secret(ENVIRONMENT_PREFIX + host.key) if host.key else None)
    if source is None:
        return ""
    key = source.reveal(environment)
    if key is None and (deployment.api_key is not None or host.key_required):
        raise ModelDisabled(
            f"model {deployment.model_name!r} is not usable: the variable {source.variable} is not set",
            hint=f"set {source.variable} in the environment of the dispatch workers, or `api_key` of the model",
        )
    return key or ""


def _base(prefix: str, host: Host, deployment: Deployment) -> str:
    base = (deployment.api_base or host.api_base).rstrip("/")
    if not base:
        raise ModelDisabled(
            f"model {deployment.model_name!r} is not usable: {prefix} has no address of its own",
            hint="set `api_base` of the model in config.yaml",
        )
    try:
        parts = urlsplit(base)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or not base.isprintable() or " " in base or parts.query or parts.fragment:
        raise ModelDisabled(
            f"model {deployment.model_name!r} is not usable: its `api_base` is not an HTTP address",
            hint="write it as https://host/v1, without a query",
        )
    return base + host.path if not parts.path else base
