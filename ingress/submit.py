"""The one way in: an HTTP body becomes a job."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Final

from ingress.body import announced_size, read_body
from ingress.exchange import Exchange
from ingress.relay import relay
from pipeline import failpoints
from pipeline.errors import InvalidRequest
from pipeline.intake import DISPATCH, RESOLVE_DISPATCH, Asked, find_prompt
from pipeline.job import LIVE, Facts, Job
from pipeline.operations import OPERATIONS
from pipeline.views import MAX_NAME, View, decode_view

SECRET_HEADERS: Final = (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"cookie", b"proxy-")
"""Beginnings of header names that no prompt manager gets to see."""

MAX_HEADER_BYTES: Final = 16 * 1024
"""Of the client's headers a job carries; those that do not fit are left out."""

_TRACEPARENT: Final = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


async def submit(exchange: Exchange, operation: str) -> None:
    """Answer a request to a model: the limits, then the body, then the job, then its reply."""
    exchange.facts = Facts()
    edge = exchange.edge
    size = announced_size(exchange)
    edge.permits.enter(size)
    try:
        edge.transport.check(DISPATCH, LIVE, size)
        body = await read_body(exchange)
        try:
            job = make_job(exchange, decode_view(body), operation)
            if failpoints.ARMED:
                await failpoints.reach("ingress.before_admit")
            waiter = await edge.transport.submit(job, body)
            if failpoints.ARMED:
                await failpoints.reach("ingress.after_admit")
        finally:
            edge.permits.release(len(body))
            del body  # from here on it is the transport's: a long answer must not pin its question
        await relay(exchange, waiter, job)
    finally:
        edge.permits.leave()


def make_job(exchange: Exchange, view: View, operation: str) -> Job:
    """Return the job of a request. Raises InvalidRequest, ModelNotFound and NotAllowed."""
    edge, key = exchange.edge, exchange.key
    assert key is not None
    name: str = exchange.scope["path_params"].get("model") or view.model or OPERATIONS[operation].model
    if len(name) > MAX_NAME:  # in a body the view sees to that, but a path may hold one as well
        raise InvalidRequest(f"a model's name has at most {MAX_NAME} characters", param="model")
    exchange.facts = Facts(model=name)
    prompt = find_prompt(Asked(view, operation, name, key.models), edge.catalog, partial(_named, exchange))
    now = edge.transport.now()
    return Job(
        id=exchange.id,
        operation=operation,
        stages_left=DISPATCH if prompt is None else RESOLVE_DISPATCH,
        deadline=now + int(_seconds(exchange, view) * 1000),
        admitted=now,
        since=now,
        reply_to=edge.transport.consumer,
        lane=LIVE,
        model=name,
        stream=bool(view.stream),
        prompt=prompt,
        tenant=key.name,
        allowed_models=key.models,
        retries=view.num_retries,
        headers={} if prompt is None else _headers(exchange),
        endpoint=exchange.scope["path"],
        config=edge.settings.digest,
        traceparent=_traceparent(exchange),
    )


def _seconds(exchange: Exchange, view: View) -> float:
    """Return how long the client will wait: the least of all it said, and of what the operator allows."""
    limits = exchange.edge.settings.ingress
    named = [limits.request_timeout, limits.max_request_timeout]
    if view.timeout is not None:
        named.append(view.timeout)
    if text := exchange.header(b"x-litellm-timeout"):
        named.append(_positive("x-litellm-timeout", text))
    # A stream's read timeout is between two chunks, so it says nothing about the whole.
    if not view.stream and (text := exchange.header(b"x-stainless-read-timeout")):
        named.append(_positive("x-stainless-read-timeout", text))
    return min(named)


def _named(exchange: Exchange, name: str) -> str:
    value = exchange.header(name.encode())
    if len(value) > MAX_NAME:
        raise InvalidRequest(f"header {name} has more than {MAX_NAME} characters", param=name)
    return value


def _positive(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (math.isfinite(value) and value > 0):
        raise InvalidRequest(f"header {name} is not a positive number of seconds", param=name)
    return value


def _headers(exchange: Exchange) -> dict[str, str]:
    """Return the client's headers for the prompt manager: no credentials, and not too many bytes."""
    kept: dict[str, str] = {}
    room = MAX_HEADER_BYTES
    for name, value in exchange.headers.items():
        room -= len(name) + len(value)
        if room < 0:
            break
        if not name.startswith(SECRET_HEADERS):
            kept[name.decode("latin-1")] = value.decode("latin-1")
    return kept


def _traceparent(exchange: Exchange) -> str:
    value = exchange.header(b"traceparent")
    return value if _TRACEPARENT.fullmatch(value) else ""
