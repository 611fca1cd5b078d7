"""Errors of the request itself: 4xx, replied at once."""

from __future__ import annotations

from typing import ClassVar

from pipeline.errors.base import PipelineError


class RequestError(PipelineError):
    """The request itself cannot be served; asking again changes nothing."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"
    should_retry: ClassVar[bool | None] = False


class InvalidRequest(RequestError):
    """The request's body or parameters are wrong."""


class InvalidBatchFile(InvalidRequest):
    """A file that its client wanted to have validated cannot be the input of a batch; it was not kept."""

    code = "invalid_batch_file"


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


class FileInUse(RequestError):
    """The file is the input of a batch that has not ended."""

    status = 409
    code = "file_in_use"


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


class TooManyBatches(RequestError):
    """The key has as many batches as it may, open or made within the hour; nothing ran."""

    status = 429
    type = "rate_limit_error"
    code = "batch_limit_reached"
    should_retry = None
