"""
The one tree of errors.

Two questions per class: what does the client see (`status`, `type`, `code`), may another deployment do better.

```text
PipelineError
├─ RequestError            4xx, replied at once
│  ├─ InvalidRequest       400   ├─ Unauthenticated  401   ├─ NotAllowed     403
│  ├─ ModelNotFound        404   ├─ PromptNotFound   404   ├─ NotFound       404
│  ├─ MethodNotAllowed     405   ├─ RequestTimeout   408   ├─ BodyTooLarge   413
│  ├─ EncodingNotSupported 415   ├─ BacklogFull      429   ├─ MasterKeyNeeded 403
│  ├─ NoSuchFile           404   ├─ QuotaExceeded    403   ├─ RangeNotSatisfiable 416
│  ├─ InvalidBatchFile     400   ├─ TooManyBatches   429   └─ FileInUse        409
├─ PromptManagerError      502, no retry by the client: it would only call the manager again
│  ├─ PromptTimeout        504   ├─ PromptModelUnknown 502 └─ PromptWorkerLost 502 (the hook killed its process)
├─ UpstreamError           the router may go elsewhere
│  ├─ UpstreamRejected     4xx   the provider's own word       (not retryable)
│  ├─ UpstreamOverloaded   429   ├─ UpstreamUnavailable 502/503 ├─ UpstreamTimeout 504 └─ UpstreamGarbled 502
│  ├─ UpstreamResting      429   every deployment rests, so none was asked (an UpstreamOverloaded)
│  ├─ UpstreamBusy         503   (an UpstreamUnavailable: the provider's own 503 or 529)
│  ├─ UpstreamCut          502   (an UpstreamGarbled: its connection was lost in the middle)
│  ├─ UpstreamNotApi       502   (an UpstreamGarbled: a redirect or a page, something else than the API)
│  ├─ UpstreamAuthFailed   502   the deployment's key was refused: ours, so never a 401 to the client
│  ├─ UpstreamForbidden    502   the provider's 403: about the key, or about the request
│  └─ ModelDisabled        503   the deployment's key is not set
├─ ConfigMismatch          503   this worker's configuration does not know the job's model
├─ DeadlineExceeded        504, never retried
├─ WorkerLost              502, a worker died while it streamed
├─ ShuttingDown            503, the ingress process stopped before the answer came
├─ Cancelled               499, the client left
├─ StorageFull             507, files cannot be written: the disk is full or read-only
├─ StorageUnavailable      503, object storage trouble: what was asked for may have happened
├─ FileDamaged             500, a file is not what was stored
├─ InternalError           500, a bug of ours: the job is a dead letter
├─ TransportError          503, Redis trouble; the job stays put
│  ├─ TransportUnavailable ├─ TransportFull ├─ NoWorker └─ MessageUnreadable (a dead letter)
└─ ConfigurationError      never seen by a client: ends the start with status 2
```
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pipeline.errors.base import PipelineError
from pipeline.errors.own import (
    Cancelled,
    ConfigMismatch,
    ConfigurationError,
    DeadlineExceeded,
    FileDamaged,
    InternalError,
    MessageUnreadable,
    NoWorker,
    PromptManagerError,
    PromptModelUnknown,
    PromptTimeout,
    PromptWorkerLost,
    ShuttingDown,
    StorageFull,
    StorageUnavailable,
    TransportError,
    TransportFull,
    TransportUnavailable,
    WorkerLost,
)
from pipeline.errors.requests import (
    BacklogFull,
    BodyTooLarge,
    EncodingNotSupported,
    FileInUse,
    InvalidBatchFile,
    InvalidRequest,
    MasterKeyNeeded,
    MethodNotAllowed,
    ModelNotFound,
    NoSuchFile,
    NotAllowed,
    NotFound,
    PromptNotFound,
    QuotaExceeded,
    RangeNotSatisfiable,
    RequestError,
    RequestTimeout,
    TooManyBatches,
    Unauthenticated,
)
from pipeline.errors.upstream import (
    ModelDisabled,
    UpstreamAuthFailed,
    UpstreamBusy,
    UpstreamCut,
    UpstreamError,
    UpstreamForbidden,
    UpstreamGarbled,
    UpstreamNotApi,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamResting,
    UpstreamTimeout,
    UpstreamUnavailable,
)

__all__ = [
    "OUR_CODES",
    "BacklogFull",
    "BodyTooLarge",
    "Cancelled",
    "ConfigMismatch",
    "ConfigurationError",
    "DeadlineExceeded",
    "EncodingNotSupported",
    "FileDamaged",
    "FileInUse",
    "InternalError",
    "InvalidBatchFile",
    "InvalidRequest",
    "MasterKeyNeeded",
    "MessageUnreadable",
    "MethodNotAllowed",
    "ModelDisabled",
    "ModelNotFound",
    "NoSuchFile",
    "NoWorker",
    "NotAllowed",
    "NotFound",
    "PipelineError",
    "PromptManagerError",
    "PromptModelUnknown",
    "PromptNotFound",
    "PromptTimeout",
    "PromptWorkerLost",
    "QuotaExceeded",
    "RangeNotSatisfiable",
    "RequestError",
    "RequestTimeout",
    "ShuttingDown",
    "StorageFull",
    "StorageUnavailable",
    "TooManyBatches",
    "TransportError",
    "TransportFull",
    "TransportUnavailable",
    "Unauthenticated",
    "UpstreamAuthFailed",
    "UpstreamBusy",
    "UpstreamCut",
    "UpstreamError",
    "UpstreamForbidden",
    "UpstreamGarbled",
    "UpstreamNotApi",
    "UpstreamOverloaded",
    "UpstreamRejected",
    "UpstreamResting",
    "UpstreamTimeout",
    "UpstreamUnavailable",
    "WorkerLost",
]


def _codes(kind: type[PipelineError]) -> Iterator[str]:
    """Yield the codes of `kind` and all below it, but for those of request errors: these are OpenAI's own names."""
    if not issubclass(kind, RequestError):
        yield kind.code
        for below in kind.__subclasses__():
            yield from _codes(below)


OUR_CODES: Final = frozenset(_codes(PipelineError))
"""Codes by which the gateway decides what becomes of a job: a provider's word cannot be one of them."""
