"""Timeouts, sizes, retries and the way to Redis: from LiteLLM's sections and ours to the Structs of `settings`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from pipeline.catalog import Catalog
from pipeline.config_section import Section, variable
from pipeline.config_units import flag, integer, number, seconds, share, size
from pipeline.settings import (
    ENVIRONMENT_PREFIX,
    BatchSettings,
    DispatchSettings,
    FileSettings,
    IngressSettings,
    PromptSettings,
    RouterSettings,
    Secret,
    Settings,
    TransportSettings,
)
from pipeline.yaml_source import Node

Converters = Mapping[str, Callable[[Node], Any]]

_COUNT: Final = partial(integer, at_least=1)
_INGRESS: Final[Converters] = {
    "request_timeout": seconds,
    "max_request_timeout": seconds,
    "max_body_bytes": size,
    "max_buffered_bytes": size,
    "max_unread_bytes": size,
    "max_backlog": _COUNT,
    "max_backlog_bytes": size,
    "max_requests": _COUNT,
    "max_connections": _COUNT,
    "head_timeout": seconds,
    "body_timeout": seconds,
    "keep_alive": seconds,
    "drain": partial(seconds, at_least=0),
}
_FILES: Final[Converters] = {
    "max_upload_bytes": size,
    "max_file_bytes": size,
    "max_file_bytes_per_key": size,
    "min_free_bytes": size,
    "max_transfers": _COUNT,
    "max_line_bytes": size,
}
_BATCHES: Final[Converters] = {
    "batch_window": _COUNT,
    "batch_window_bytes": size,
    "batch_line_timeout": seconds,
    "batch_line_tries": _COUNT,
    "batch_retention": seconds,
    "max_batch_lines": _COUNT,
    "max_batch_bytes": size,
    "max_embedding_inputs": _COUNT,
    "max_batches_per_hour": _COUNT,
    "max_open_batches": _COUNT,
}
# OpenAI's guide to batches, section on rate limits.
_PRESETS: Final[Mapping[str, Mapping[str, int]]] = {
    "openai": {
        "max_batch_lines": 50_000,
        "max_batch_bytes": 200 * 2**20,
        "max_embedding_inputs": 50_000,
    },
}
_TRANSPORT: Final[Converters] = {
    "lease": partial(seconds, at_least=1),
    "grace": partial(seconds, at_least=1),  # a read of the stream blocks for up to a second
    "batch_reserve": share,
    "dead_letter_bodies": flag,
    "maxmemory": size,
    "accept_eviction": flag,
}
_DISPATCH: Final[Mapping[str, tuple[str, Callable[[Node], Any]]]] = {
    "dispatch_slots": ("slots", _COUNT),
    "max_response_bytes": ("max_response_bytes", size),
    "connect_timeout": ("connect_timeout", seconds),
}
_REDIS: Final = re.compile(r"(redis|rediss|unix)://.+", re.ASCII)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of the settings that are read here."""

    ingress: IngressSettings
    files: FileSettings
    batches: BatchSettings
    router: RouterSettings
    prompts: PromptSettings
    dispatch: DispatchSettings
    transport: TransportSettings


def read_limits(litellm: Section, router: Section, general: Section, own: Section) -> Limits:
    """Return all limits; where `router_settings` and `litellm_settings` say different things, the first counts."""
    routing = _router(litellm, router)
    ingress, prompts = _ingress(general, own, routing.timeout), _prompts(own)
    batches = _batches(own, ingress.max_request_timeout)
    _within(own, "prompt_timeout", prompts.timeout, "max_request_timeout", ingress.max_request_timeout)
    return Limits(
        ingress=ingress,
        files=FileSettings(**_read(own, _FILES)),
        batches=batches,
        router=routing,
        prompts=prompts,
        dispatch=_dispatch(general, own),
        transport=_transport(own),
    )


def check_aliases(router: Section, models: Settings) -> None:
    """Note an error for each alias of a model that does not exist."""
    direct = Catalog(msgspec.structs.replace(models, router=RouterSettings()))  # an alias of an alias leads nowhere
    section = router.section("model_group_alias")
    for alias, name in models.router.aliases.items():
        if direct.group(name) is None:
            close = ", ".join(direct.closest(name))
            section.error(alias, f"no model {name!r}; {f'there is {close}' if close else 'add it to `model_list`'}")
        elif alias in direct.names():
            section.notice(alias, f"hides the model of the same name; requests for it go to {name!r}")


def _read(section: Section, converters: Converters) -> dict[str, Any]:
    """Return the fields that are there; the others keep the defaults of their Struct."""
    found = {key: section.read(key, convert) for key, convert in converters.items()}
    return {key: value for key, value in found.items() if value is not None}


def _router(litellm: Section, router: Section) -> RouterSettings:
    retries = partial(integer, at_least=0)
    fields = {
        "retries": _first(router, litellm, "num_retries", retries),
        "timeout": _first(router, litellm, "timeout", seconds),
        "allowed_fails": _first(router, litellm, "allowed_fails", retries),
        "cooldown": _first(router, litellm, "cooldown_time", partial(seconds, at_least=0)),
        "retry_after": _first(router, litellm, "retry_after", partial(seconds, at_least=0)),
        "aliases": _aliases(router),
    }
    general = litellm.read("request_timeout", seconds)
    if fields["timeout"] is None:
        fields["timeout"] = general
    strategy = router.text("routing_strategy")
    if strategy not in {None, "simple-shuffle"}:
        router.notice(
            "routing_strategy", f"{strategy!r} has no effect here yet; deployments are chosen by simple-shuffle"
        )
    return RouterSettings(**{key: value for key, value in fields.items() if value is not None})


def _first(router: Section, litellm: Section, key: str, convert: Callable[[Node], Any]) -> Any:
    chosen, other = router.read(key, convert), litellm.read(key, convert)
    return other if chosen is None else chosen


def _aliases(router: Section) -> dict[str, str]:
    section = router.section("model_group_alias")
    found: dict[str, str] = {}
    for alias in section.unread():
        node = section.raw(alias)
        nested = section.section(alias) if node is not None and isinstance(node.value, dict) else None
        name = section.text(alias) if nested is None else nested.required("model")
        if nested is not None and nested.read("hidden", flag):
            nested.notice("hidden", "has no effect here yet; the alias is listed")
        if name is not None:
            found[alias] = name
    return found


def _ingress(general: Section, own: Section, call: float | None) -> IngressSettings:
    """Return the edge's limits: what is given stays, and what is not gives way to it."""
    fields = _read(own, _INGRESS)
    megabytes = general.read("max_request_size_mb", partial(number, above=0))
    if megabytes is not None:
        fields.setdefault("max_body_bytes", int(megabytes * 2**20))
    default = IngressSettings()
    if "request_timeout" not in fields:  # LiteLLM's limit of one call must fit into a request
        wanted = max(default.request_timeout, call or 0.0)
        longest = fields.setdefault("max_request_timeout", max(default.max_request_timeout, wanted))
        fields["request_timeout"] = min(wanted, longest)
    if "max_body_bytes" not in fields and "max_buffered_bytes" in fields:
        fields["max_body_bytes"] = min(default.max_body_bytes, fields["max_buffered_bytes"])
    found = IngressSettings(**fields)
    _within(own, "request_timeout", found.request_timeout, "max_request_timeout", found.max_request_timeout)
    _within(own, "max_body_bytes", found.max_body_bytes, "max_buffered_bytes", found.max_buffered_bytes)
    return found


def _within(own: Section, key: str, value: float, limit: str, most: float) -> None:
    if value > most:
        own.error(
            key if key in own else limit, f"{key} is {value:g} and above {limit}, {most:g}; lower it, or raise {limit}"
        )


def _prompts(own: Section) -> PromptSettings:
    fields: dict[str, Any] = {"timeout": own.read("prompt_timeout", seconds), "slots": own.read("prompt_slots", _COUNT)}
    return PromptSettings(
        environment=own.texts("prompt_env"),
        accept_ignored=own.texts("accept_ignored"),
        **{key: value for key, value in fields.items() if value is not None},
    )


def _batches(own: Section, longest: float) -> BatchSettings:
    preset = own.choice("batch_limits", tuple(_PRESETS))
    fields = {**_PRESETS.get(preset or "", {}), **_read(own, _BATCHES), "batch_limits": preset}
    fields.setdefault("batch_line_timeout", min(BatchSettings().batch_line_timeout, longest))
    found = BatchSettings(**fields)
    _within(own, "batch_line_timeout", found.batch_line_timeout, "max_request_timeout", longest)
    return found


def _dispatch(general: Section, own: Section) -> DispatchSettings:
    fields = {field: own.read(key, convert) for key, (field, convert) in _DISPATCH.items()}
    megabytes = general.read("max_response_size_mb", partial(number, above=0))
    if megabytes is not None and fields["max_response_bytes"] is None:
        fields["max_response_bytes"] = int(megabytes * 2**20)
    return DispatchSettings(**{key: value for key, value in fields.items() if value is not None})


def _transport(own: Section) -> TransportSettings:
    fields = _read(own, _TRANSPORT)
    if (persistence := own.choice("persistence", ("always", "everysec", "no"))) is not None:
        fields["persistence"] = persistence
    return TransportSettings(url=_redis(own), **fields)


def _redis(own: Section) -> Secret | None:
    node = own.raw("redis_url")
    if node is None or node.value is None:
        found = own.context.environment.get("REDIS_URL")
        return Secret(f"{ENVIRONMENT_PREFIX}REDIS_URL") if found else None
    secret = own.secret("redis_url")
    if name := variable(node):
        if not own.context.environment.get(name):
            own.error(
                "redis_url", f"the variable {name} is not set; set it, or take the line out for an embedded server"
            )
    elif secret is not None and not _REDIS.fullmatch(secret.source):
        own.error("redis_url", "not a Redis address; give one that starts with redis://, rediss:// or unix://")
    return secret
