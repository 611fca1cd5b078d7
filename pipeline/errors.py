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
│  └─ NoSuchFile           404   ├─ QuotaExceeded    403   └─ RangeNotSatisfiable 416
├─ PromptManagerError      502, no retry by the client: it would only call the manager again
│  ├─ PromptTimeout        504   ├─ PromptModelUnknown 502 └─ PromptWorkerLost 502 (the hook killed its process)
├─ UpstreamError           the router may go elsewhere
│  ├─ UpstreamRejected     4xx   the provider's own word       (not retryable)
│  ├─ UpstreamOverloaded   429   ├─ UpstreamUnavailable 502/503 ├─ UpstreamTimeout 504 └─ UpstreamGarbled 502
│  ├─ UpstreamResting      429   every deployment rests, so none was asked (an UpstreamOverloaded)
│  ├─ UpstreamBusy         503   (an UpstreamUnavailable: the provider's own 503 or 529)
│  ├─ UpstreamAuthFailed   502   the deployment's key was refused: ours, so never a 401 to the client
│  └─ ModelDisabled        503   the deployment's key is not set
├─ ConfigMismatch          503   this worker's configuration does not know the job's model
├─ DeadlineExceeded        504, never retried
├─ WorkerLost              502, a worker died while it streamed
├─ ShuttingDown            503, the ingress process stopped before the answer came
├─ Cancelled               499, the client left
├─ StorageFull             507, files cannot be written: the disk is full or read-only
├─ InternalError           500, a bug of ours: the job is a dead letter
├─ TransportError          503, Redis trouble; the job stays put
│  ├─ TransportUnavailable ├─ TransportFull ├─ NoWorker └─ MessageUnreadable (a dead letter)
└─ ConfigurationError      never seen by a client: ends the start with status 2
```
"""

from __future__ import annotations

from typing import ClassVar

from pipeline.job import ErrorFields


class PipelineError(Exception):
    """An error with a remedy. `str(error)` is the message for people; it never holds a prompt, a body or a key."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False
    should_retry: ClassVar[bool | None] = None

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        param: str | None = None,
        retry_after: float | None = None,
        stage: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param
        self.retry_after = retry_after
        self.stage = stage

    def fields(self, stage: str = "") -> ErrorFields:
        """Return what travels in a reply; `stage` says where it happened unless the error knows better."""
        return ErrorFields(
            status=self.status,
            type=self.type,
            code=self.code,
            message=self.message,
            param=self.param,
            hint=self.hint,
            stage=self.stage or stage,
            retry_after=self.retry_after,
            should_retry=self.should_retry,
        )


class RequestError(PipelineError):
    """The request itself cannot be served; asking again changes nothing."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"
    should_retry: ClassVar[bool | None] = False


class InvalidRequest(RequestError):
    """The request's body or parameters are wrong."""


class Unauthenticated(RequestError):
    """No key, or not one of ours."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class NotAllowed(RequestError):
    """The key may not use this."""

    status = 403
    type = "permission_error"
    code = "model_not_allowed"


class MasterKeyNeeded(NotAllowed):
    """Only the master key may see this."""

    code = "master_key_required"


class QuotaExceeded(NotAllowed):
    """The key's files take up as many bytes as they may."""

    code = "file_quota_exceeded"


class NotFound(RequestError):
    """There is nothing at this path or under this id."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """The model is not in the configuration."""

    code = "model_not_found"


class PromptNotFound(NotFound):
    """No prompt manager knows the prompt."""

    code = "prompt_not_found"


class NoSuchFile(NotFound):
    """No file of this key has the id."""

    code = "file_not_found"


class MethodNotAllowed(RequestError):
    """The path exists, for other methods."""

    status = 405
    code = "method_not_allowed"


class RequestTimeout(RequestError):
    """The request's head or body arrived too slowly; nothing ran."""

    status = 408
    code = "request_timeout"


class EncodingNotSupported(RequestError):
    """The request's body is compressed."""

    status = 415
    code = "unsupported_encoding"


class BodyTooLarge(RequestError):
    """The body is over the size limit."""

    status = 413
    code = "request_too_large"


class RangeNotSatisfiable(RequestError):
    """The part of a file that was asked for does not exist, or is more than one."""

    status = 416
    code = "range_not_satisfiable"


class BacklogFull(RequestError):
    """The pipeline holds as much as it may; nothing ran."""

    status = 429
    type = "rate_limit_error"
    code = "backlog_full"
    should_retry = None


class PromptManagerError(PipelineError):
    """The operator's prompt manager failed. The client must not retry: the SDKs would call the manager three times."""

    status = 502
    type = "prompt_manager_error"
    code = "prompt_manager_error"
    should_retry = False


class PromptTimeout(PromptManagerError):
    """The prompt manager took longer than `prompt_timeout`."""

    status = 504
    code = "prompt_manager_timeout"


class PromptModelUnknown(PromptManagerError):
    """The prompt manager chose a model that no group serves."""

    code = "prompt_model_unknown"


class PromptWorkerLost(PromptManagerError):
    """The job was delivered as often as it may be and took its process down every time."""

    code = "prompt_manager_crashed"


class UpstreamError(PipelineError):
    """The provider failed, or the way to it. `upstream_status` is what it answered, 0 when it did not."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"
    retryable = True
    should_retry: ClassVar[bool | None] = False
    same_again: ClassVar[bool] = True
    """Whether the same deployment may do better next time, too."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        param: str | None = None,
        retry_after: float | None = None,
        upstream_status: int = 0,
    ) -> None:
        super().__init__(message, hint=hint, param=param, retry_after=retry_after, stage="dispatch")
        self.upstream_status = upstream_status


class UpstreamRejected(UpstreamError):
    """The provider refused the request itself; its own status, type and code are passed on."""

    retryable = False

    def __init__(self, message: str, *, wire: ErrorFields, hint: str = "") -> None:
        super().__init__(message, hint=hint, param=wire.param, upstream_status=wire.status)
        self._wire = wire

    def fields(self, stage: str = "") -> ErrorFields:
        """Return the provider's words under the provider's status."""
        return self._wire


class UpstreamOverloaded(UpstreamError):
    """The provider's limit is reached (429)."""

    status = 429
    type = "rate_limit_error"
    code = "upstream_rate_limited"


class UpstreamResting(UpstreamOverloaded):
    """Every deployment rests after failures. None was asked, so the client may ask again once the first is back."""

    should_retry = None


class UpstreamUnavailable(UpstreamError):
    """The provider answered 5xx, or could not be reached."""

    code = "upstream_unavailable"


class UpstreamBusy(UpstreamUnavailable):
    """The provider said that it cannot serve now (503, 529)."""

    status = 503


class UpstreamAuthFailed(UpstreamError):
    """The provider refused the deployment's key. It is the operator's, so the client's own key is not to blame."""

    code = "upstream_auth_failed"
    same_again = False


class UpstreamTimeout(UpstreamError):
    """The provider did not answer in time."""

    status = 504
    code = "upstream_timeout"


class UpstreamGarbled(UpstreamError):
    """The provider's answer is not what its dialect promises: not JSON, an error under 200, a cut stream."""

    code = "upstream_garbled"
    same_again = False  # it may have been paid for


class ModelDisabled(UpstreamError):
    """The deployment cannot be used as configured: the variable its key comes from is not set."""

    status = 503
    code = "model_disabled"


class ConfigMismatch(PipelineError):
    """A worker with another configuration than the ingress got the job, and kept getting it."""

    status = 503
    code = "config_mismatch"


class DeadlineExceeded(PipelineError):
    """Nobody waits any longer."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"
    should_retry = False


class WorkerLost(PipelineError):
    """A worker died after bytes had gone to the client; the provider is not called again."""

    status = 502
    code = "worker_lost"
    should_retry = False


class ShuttingDown(PipelineError):
    """The process that held the request is being stopped."""

    status = 503
    type = "service_unavailable"
    code = "shutting_down"


class Cancelled(PipelineError):
    """The client left before the answer; 499 is what reverse proxies log for it."""

    status = 499
    code = "client_closed_request"


class StorageFull(PipelineError):
    """A file cannot be written: no space, no permission, a broken disk. Nothing of it is kept."""

    status = 507
    code = "storage_full"
    should_retry = False  # the whole file would be sent again, in vain


class InternalError(PipelineError):
    """A bug of ours, or a job no consumer could finish: it is kept as a dead letter."""


class TransportError(PipelineError):
    """Redis trouble. Nothing ran that was not acknowledged."""

    status = 503
    type = "service_unavailable"
    code = "transport_error"


class TransportUnavailable(TransportError):
    """Redis cannot be reached."""

    code = "redis_unavailable"


class TransportFull(TransportError):
    """Redis refuses writes: it is at `maxmemory`."""

    code = "redis_full"


class NoWorker(TransportError):
    """No process of a stage that the job must visit has been seen for a while."""

    code = "no_worker"


class MessageUnreadable(TransportError):
    """A stream entry that does not decode; it becomes a dead letter at first sight."""

    code = "message_unreadable"


class ConfigurationError(PipelineError):
    """The configuration cannot be used; the message says file, line, value and remedy."""

    code = "configuration_error"
