"""Batches: create, retrieve, list, cancel. Each key sees its own, the master key those of all."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from ingress.body import announced_size, read_body
from ingress.exchange import Exchange, route
from ingress.queries import query_of, whole_number
from pipeline.errors import InvalidRequest
from pipeline.intake import BATCHED
from pipeline.stores.batch_records import BatchOrder, BatchState, Record, Usage
from pipeline.stores.files import EXPIRY, Viewer

WINDOW: Final = "24h"
MOST_LISTED: Final = 100
LISTED: Final = 20

TIMES: Final = (
    "in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at"
)  # fmt: skip

Word = Annotated[str, msgspec.Meta(max_length=512)]


class ExpiresAfter(msgspec.Struct, frozen=True):
    """How long the output files are kept."""

    anchor: str
    seconds: int


class NewBatch(msgspec.Struct, frozen=True):
    """A new batch as its client asks for it."""

    input_file_id: Word
    endpoint: Word
    completion_window: Word
    metadata: dict[Annotated[str, msgspec.Meta(max_length=64)], Word] | None = None
    output_expires_after: ExpiresAfter | None = None


_decode: Final = msgspec.json.Decoder(NewBatch).decode


async def create(exchange: Exchange) -> None:
    """
    Make a batch of an uploaded file. What is wrong with its lines shows in the batch, which fails then.

    Raises InvalidRequest, NoSuchFile, TooManyBatches and StorageFull.
    """
    edge, key = exchange.edge, exchange.key
    assert key is not None
    wanted = await _read(exchange)
    file = await edge.files.get(wanted.input_file_id, exchange.viewer)
    if file.file.purpose != "batch":
        raise InvalidRequest("the input file must have the purpose `batch`", param="input_file_id")
    most = edge.settings.batches.max_batch_bytes
    if most is not None and file.file.bytes > most:
        message = f"the input file has more than {most} bytes; split it, or raise max_batch_bytes"
        raise InvalidRequest(message, param="input_file_id")
    expires = wanted.output_expires_after
    order = BatchOrder(
        owner=key.name,
        endpoint=wanted.endpoint,
        input_file_id=wanted.input_file_id,
        allowed_models=key.models,
        metadata=wanted.metadata,
        output_expires_after=None if expires is None else expires.seconds,
        config=edge.settings.digest,
    )
    async with edge.quota.place(key.name):
        state = await edge.batches.create(order)
    await exchange.respond_json(shown(state, exchange.viewer))


async def get_batch(exchange: Exchange) -> None:
    """Answer with one batch. Raises NotFound."""
    await exchange.respond_json(shown(await _state(exchange), exchange.viewer))


async def cancel(exchange: Exchange) -> None:
    """Cancel a batch; once more, or after its end, changes nothing. Raises NotFound."""
    state = await exchange.edge.batches.cancel(await _state(exchange))
    await exchange.respond_json(shown(state, exchange.viewer))


async def list_batches(exchange: Exchange) -> None:
    """Answer with a page of batches, newest first. Raises InvalidRequest and NotFound."""
    query = query_of(exchange)
    limit = whole_number("limit", query.get("limit", str(LISTED)), range(1, MOST_LISTED + 1))
    states, more = await exchange.edge.batches.page(exchange.viewer, query.get("after"), limit)
    first, last = (states[0].request.id, states[-1].request.id) if states else (None, None)
    data = [shown(state, exchange.viewer) for state in states]
    await exchange.respond_json({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more})


def shown(state: BatchState, viewer: Viewer) -> dict[str, Any]:
    """
    Return OpenAI's batch object, with each of its keys, and how it comes along.

    How many lines of all keys wait is only for those who see the batches of all.
    """
    request, record = state.request, state.record
    times: dict[str, int | None] = {name: record.times.get(name) for name in TIMES}
    status = record.status
    if state.cancelled is not None and not record.terminal:
        status = "cancelling"
    if state.cancelled is not None and status in ("cancelling", "cancelled"):
        times["cancelling_at"] = state.cancelled
    return {
        "id": request.id,
        "object": "batch",
        "endpoint": request.endpoint,
        "model": None,
        "errors": {"object": "list", "data": record.errors} if record.errors else None,
        "input_file_id": request.input_file_id,
        "completion_window": WINDOW,
        "status": status,
        "output_file_id": record.output_file_id,
        "error_file_id": record.error_file_id,
        "created_at": int(request.created),
        "expires_at": int(request.expires),
        **times,
        "request_counts": {"total": record.total, "completed": record.completed, "failed": record.failed},
        "usage": _usage(record),
        "metadata": request.metadata,
        "promptmill": record.progress if viewer is None else msgspec.structs.replace(record.progress, waiting={}),
    }


def _usage(record: Record) -> dict[str, Any]:
    used = record.usage or Usage()
    return {
        "input_tokens": used.input_tokens,
        "input_tokens_details": {"cached_tokens": used.cached_tokens},
        "output_tokens": used.output_tokens,
        "output_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
        "total_tokens": used.input_tokens + used.output_tokens,
    }


async def _read(exchange: Exchange) -> NewBatch:
    announced_size(exchange)
    body = await read_body(exchange)
    exchange.edge.permits.release(len(body))
    try:
        wanted = _decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the batch is not valid: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("the body is not JSON") from None
    if wanted.endpoint not in BATCHED:
        raise InvalidRequest(f"`endpoint` must be one of {', '.join(BATCHED)}", param="endpoint")
    if wanted.completion_window != WINDOW:
        raise InvalidRequest(f"`completion_window` must be {WINDOW}", param="completion_window")
    if wanted.metadata is not None and len(wanted.metadata) > 16:
        raise InvalidRequest("`metadata` has at most 16 pairs", param="metadata")
    expires = wanted.output_expires_after
    if expires is not None and (expires.anchor != "created_at" or expires.seconds not in EXPIRY):
        message = f"`output_expires_after` must have the anchor created_at and {EXPIRY[0]} to {EXPIRY[-1]} seconds"
        raise InvalidRequest(message, param="output_expires_after")
    return wanted


async def _state(exchange: Exchange) -> BatchState:
    return await exchange.edge.batches.get(exchange.scope["path_params"]["id"], exchange.viewer)


routes = [
    route("/batches", "batches", create, "POST"),
    route("/batches", "batches", list_batches, "GET"),
    route("/batches/{id:path}/cancel", "batches", cancel, "POST"),
    route("/batches/{id:path}", "batches", get_batch, "GET"),
]
