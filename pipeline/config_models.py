"""`model_list`: its entries as deployments, and what decides whether two configurations mean the same by them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from pipeline.config_keys import RESTRICTING, is_control
from pipeline.config_section import Section, shown, variable
from pipeline.config_units import integer, number, prose, seconds, text
from pipeline.settings import Deployment
from pipeline.yaml_source import Node

T = TypeVar("T")

_ID: Final = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)  # it travels in a response header
_PROMPT_FIELDS: Final = ("prompt_id", "prompt_version", "prompt_label", "prompt_variables")
_NOT_MEANING: Final = frozenset(["timeout", "stream_timeout"])


class Models(msgspec.Struct, frozen=True):
    """The deployments, and for each what it is made of without secrets' values and resolved variables."""

    deployments: tuple[Deployment, ...]
    fingerprints: tuple[Any, ...]


def read_models(top: Section) -> Models:
    """Return all entries of `model_list`; what is wrong is noted and that entry left out."""
    deployments: list[Deployment] = []
    fingerprints: list[Any] = []
    seen: Counter[str] = Counter()
    places: dict[str, Section] = {}
    entries: list[tuple[Deployment, Section]] = []
    for entry in top.items("model_list"):
        params = entry.section("litellm_params")
        fingerprint = _fingerprint(entry, params)
        if (deployment := _deployment(entry, params, fingerprint, seen)) is None:
            continue
        if deployment.id in places:
            first = places[deployment.id].node.place
            entry.section("model_info").error(
                "id", f"{deployment.id!r} is the id of the entry at {first}; ids must differ"
            )
        places.setdefault(deployment.id, entry)
        entries.append((deployment, params))
        deployments.append(deployment)
        fingerprints.append(fingerprint)
    _agree(entries)
    _weigh(entries)
    if not deployments:
        top.notice("model_list", "no models; add entries with `model_name` and `litellm_params`")
    return Models(tuple(deployments), tuple(fingerprints))


def _deployment(entry: Section, params: Section, fingerprint: Any, seen: Counter[str]) -> Deployment | None:
    name, info = entry.required("model_name"), entry.section("model_info")
    if "litellm_params" not in entry:
        entry.error("litellm_params", "missing; give at least `model: provider/name` below it")
        return None
    model, destination = _model(params), _destination(params)
    unset = tuple(dict.fromkeys(params.unset))  # so far: what follows may be absent without a call going elsewhere
    chosen = info.text("id")
    if chosen is not None and not _ID.fullmatch(chosen):
        info.error("id", f"{chosen[:60]!r} cannot be an id; use up to 128 ASCII characters without spaces")
    fields = destination | _connection(params) | _limits(params) | _prompt(params)
    fields |= _batch(params)
    fields["defaults"] = _defaults(params, params.knows)
    entry.close("model_list")
    if name is None or model is None:
        return None
    if name.count("*") > 1 or ("*" in model and "*" not in name):
        entry.error("model_name", f"{name!r} must hold exactly one `*` where its model has one, and never more")
    computed = _digest([name, *fingerprint["identity"]])
    seen[computed] += 1
    return Deployment(
        id=chosen or _digest([computed, seen[computed]]),
        model_name=name,
        model=model,
        unset=unset,
        line=entry.node.line,
        **fields,
    )


def _model(params: Section) -> str | None:
    """Return `model` with its provider in front: the one of `custom_llm_provider`, else OpenAI."""
    model, provider = params.required("model"), params.text("custom_llm_provider")
    if model is None:
        return None
    if provider:
        return model if model.startswith(f"{provider}/") else f"{provider}/{model}"
    return model if "/" in model or model == "*" else f"openai/{model}"


def _destination(params: Section) -> dict[str, Any]:
    """Return what decides, besides the provider, who is called."""
    base = _either(params, "api_base", "base_url", _url)
    return {"api_base": base, "mock_response": params.read("mock_response", prose)}


def _connection(params: Section) -> dict[str, Any]:
    return {
        "api_key": params.secret("api_key"),
        "api_version": params.text("api_version"),
        "organization": params.text("organization"),
        "headers": params.headers("extra_headers"),
    }


def _limits(params: Section) -> dict[str, Any]:
    if params.read("max_parallel_requests", partial(integer, at_least=1)) is not None:
        params.notice("max_parallel_requests", "has no effect here yet; `dispatch_slots` bounds the calls of a process")
    return {
        "timeout": params.read("timeout", seconds),
        "stream_timeout": params.read("stream_timeout", seconds),
        "retries": _either(params, "num_retries", "max_retries", partial(integer, at_least=0)),
        "weight": params.read("weight", partial(number, at_least=0)),
        "rpm": params.read("rpm", partial(integer, at_least=1)),
        "tpm": params.read("tpm", partial(integer, at_least=1)),
    }


def _prompt(params: Section) -> dict[str, Any]:
    fields = {
        "prompt_id": params.text("prompt_id"),
        "prompt_version": params.read("prompt_version", _version),
        "prompt_label": params.text("prompt_label"),
        "prompt_variables": params.mapping("prompt_variables"),
    }
    if fields["prompt_id"] is None and any(value is not None for value in fields.values()):
        params.notice("prompt_id", "missing; the prompt's version, label and variables have no effect without it")
    return fields


def _batch(params: Section) -> dict[str, Any]:
    """Return what holds on the batch lane alone."""
    batch = params.section("batch_params")
    limit = batch.read("timeout", seconds)
    for key in filter(params.knows, batch.unread()):
        batch.raw(key)
        batch.notice(key, "steers the gateway and is left out; give it outside of batch_params")
    return {"batch_timeout": limit, "batch_defaults": _defaults(batch, params.knows)}


def _defaults(params: Section, steers: Callable[[str], bool]) -> dict[str, Any]:
    """Return the body fields among the keys nobody read, `extra_body` spread; LiteLLM's own keys are noticed."""
    found: dict[str, Any] = {}
    for key, value in (params.mapping("extra_body") or {}).items():
        if is_control(key) or steers(key):
            params.notice(
                "extra_body", f"{key!r} in it steers the gateway and is left out; give it outside of extra_body"
            )
        else:
            found[key] = value
    for key in params.unread():
        if key in RESTRICTING["litellm_params"]:
            params.restricted(key)
        elif is_control(key):
            params.notice(key, "has no effect here yet")
        elif (value := params.plain(key)) is not None:
            found[key] = value
    return found


def _either(params: Section, key: str, other: str, convert: Callable[[Node], T]) -> T | None:
    """Return the first of two names for one thing."""
    first, second = params.read(key, convert), params.read(other, convert)
    if first is not None and second is not None and first != second:
        params.notice(other, f"`{key}` is there too, and counts")
    return second if first is None else first


def _url(node: Node) -> str:
    found = text(node)
    try:
        parts = urlsplit(found)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and " " not in found and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ValueError("is not a URL; give one that starts with http:// or https://")
    return found


def _version(node: Node) -> str | int:
    if isinstance(node.value, int) and not isinstance(node.value, bool):
        return node.value
    return text(node)


def _agree(entries: Iterable[tuple[Deployment, Section]]) -> None:
    """Note an error where deployments of one group reference different prompts: a request knows only the group."""
    first: dict[str, tuple[Deployment, Section]] = {}
    for deployment, params in entries:
        known, place = first.setdefault(deployment.model_name, (deployment, params))
        for field in _PROMPT_FIELDS:
            if getattr(known, field) != getattr(deployment, field):
                other = (place.raw(field) or place.node).place
                params.error(
                    field,
                    f"differs from the entry of the same model {deployment.model_name!r} at {other}; "
                    "give both the same, or different model names",
                )


def _weigh(entries: Iterable[tuple[Deployment, Section]]) -> None:
    """Tell of entries that never get a call: once one of a group has a weight, those without count as 0."""
    entries = tuple(entries)
    weighted = {deployment.model_name for deployment, _ in entries if deployment.weight is not None}
    for deployment, params in entries:
        if deployment.weight is None and deployment.model_name in weighted:
            params.notice("weight", "missing, while others of the group have one: this entry gets no calls")


def _fingerprint(entry: Section, params: Section) -> Any:
    """
    Return what an entry is made of, as it is written.

    Variables are not resolved: stages may run with different environments, and still mean the same. Of secrets only
    their variable counts.
    """
    raw = params.node.value if isinstance(params.node.value, dict) else {}
    base = raw.get("api_base") or raw.get("base_url")
    key = raw.get("api_key")
    plain = {name: _written(name, node) for name, node in raw.items() if name not in _NOT_MEANING}
    info = entry.section("model_info")
    return {
        "model_name": _raw_text(entry.raw("model_name")),
        "id": _raw_text(info.raw("id")),
        "identity": [_raw_text(raw.get("model")), _raw_text(base), variable(key) if key else None],
        "params": plain,
    }


def _written(name: str, node: Node) -> Any:
    if name == "extra_headers" and isinstance(node.value, dict):
        return {header: variable(value) or "literal" for header, value in node.value.items()}
    if name == "api_key" or is_control(name):
        return variable(node) or "literal"
    return node.plain()


def _raw_text(node: Node | None) -> str:
    return "" if node is None else str(node.text or shown(node))


def _digest(parts: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:12]
