"""The wire contract: what travels on a stream beside the body's bytes, and what comes back."""

from __future__ import annotations

import secrets
from typing import Any, Final

import msgspec

LIVE: Final = "live"
"""The lane of interactive requests."""

BATCH: Final = "batch"
"""The lane of batch lines; live deliveries go first."""

LANES: Final = (LIVE, BATCH)


def serving(stage: str, lane: str) -> str:
    """Return what a process does that serves one lane of a stage, for people."""
    return stage if lane == LIVE else f"{stage} ({lane})"


PARTITION: Final = "0"
"""The only partition built so far; a job's id starts with the partition it never leaves."""


class PromptRef(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which prompt a request asked for. Its variables stay in the body: they may be large."""

    id: str
    version: str | int | None = None
    label: str | None = None
    source: str = "body"
    """Where the reference was found: `body`, `object` (OpenAI's `prompt`), `header` or `model` (the model group)."""


class Facts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What happened to a job so far, in milliseconds where it is a duration; told to the client in headers."""

    model: str = ""
    deployment: str = ""
    attempts: int = 0
    prompt_id: str = ""
    prompt: str = ""
    """`changed` or `unchanged`; empty when no prompt was referenced."""
    queue_ms: float = 0.0
    prompt_ms: float = 0.0
    provider_ms: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One request on its way through the pipeline.

    Fields are only ever added, each with a default: old and new workers share streams during a rollout.
    Instants are milliseconds on the Redis server's clock.
    """

    id: str
    operation: str
    """What the client called: one of `pipeline.operations`."""
    stages_left: tuple[str, ...]
    deadline: int
    admitted: int = 0
    since: int = 0
    """When the stage now first in `stages_left` got the job: what its queueing time is measured from."""
    reply_to: str = ""
    """Consumer name of the ingress process that waits."""
    lane: str = LIVE
    model: str = ""
    """The client's model name until resolved; then the group that serves."""
    stream: bool = False
    prompt: PromptRef | None = None
    tenant: str = ""
    """Name of the key that asked; empty on a gateway without keys."""
    allowed_models: tuple[str, ...] = ()
    """Model names or wildcards the key may use; empty: all."""
    retries: int | None = None
    """The client's `num_retries`."""
    headers: dict[str, str] = {}
    """The client's headers for the prompt manager, credentials left out; only with a prompt reference."""
    endpoint: str = ""
    """Path the client called, for the prompt manager."""
    config: str = ""
    """Digest of the configuration by which `model` was named: the ingress's, then that of resolve."""
    traceparent: str = ""
    deferrals: int = 0
    """How often the job was put off by a stage."""
    facts: Facts = Facts()


class ErrorFields(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A `PipelineError` on the wire: all that the client is told, and nothing else."""

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    hint: str = ""
    stage: str = ""
    retry_after: float | None = None
    should_retry: bool | None = None


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The terminal word on a job. Its body travels beside it; `frames` says how many frames went before."""

    id: str
    run: str = ""
    status: int = 200
    content_type: str = "application/json"
    frames: int = 0
    error: ErrorFields | None = None
    facts: Facts = Facts()


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """Some bytes of a streamed answer. The first of a run (`seq` 0) also carries the facts for the headers."""

    id: str
    run: str
    seq: int
    data: bytes
    facts: Facts | None = None
    content_type: str = ""


def new_id() -> str:
    """Return an unguessable job id (128 bits) that starts with its partition."""
    return f"{PARTITION}-{secrets.token_hex(16)}"


encode: Final = msgspec.msgpack.Encoder().encode
decode_job: Final = msgspec.msgpack.Decoder(Job).decode
decode_reply: Final = msgspec.msgpack.Decoder(Reply).decode
decode_frames: Final = msgspec.msgpack.Decoder(list[Frame]).decode
encode_json: Final = msgspec.json.Encoder().encode
decode_json: Final[Any] = msgspec.json.Decoder().decode
