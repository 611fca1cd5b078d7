"""Errors of the gateway and of what its operator gave it: prompt managers, Redis, disk, configuration."""

from __future__ import annotations

from pipeline.errors.base import PipelineError


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


class StorageUnavailable(PipelineError):
    """The object store that files are in cannot be reached, or refuses us; it may have done what it was asked."""

    status = 503
    type = "service_unavailable"
    code = "storage_unavailable"


class FileDamaged(PipelineError):
    """A file's contents are not those that were stored: its checksum or its size differs."""

    code = "file_damaged"
    should_retry = False


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
    """No process of a stage that the job must visit has been seen for a while, or came to a batch's line in time."""

    code = "no_worker"


class MessageUnreadable(TransportError):
    """A stream entry that does not decode; it becomes a dead letter at first sight."""

    code = "message_unreadable"


class ConfigurationError(PipelineError):
    """The configuration cannot be used; the message says file, line, value and remedy."""

    code = "configuration_error"
