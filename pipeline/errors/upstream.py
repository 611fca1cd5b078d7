"""Errors of a provider, and of the way to it."""

from __future__ import annotations

from typing import ClassVar

from pipeline.errors.base import PipelineError
from pipeline.job import ErrorFields


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
    """
    The provider refused the deployment's key, or its account has no credit (401, 402).

    Both are the operator's, so the client's own key is not to blame.
    """

    code = "upstream_auth_failed"
    same_again = False


class UpstreamForbidden(UpstreamError):
    """The provider answered 403: the deployment's key may not do this, or nobody may, as the request is."""

    code = "upstream_forbidden"
    same_again = False


class UpstreamTimeout(UpstreamError):
    """The provider did not answer in time."""

    status = 504
    code = "upstream_timeout"


class UpstreamGarbled(UpstreamError):
    """The provider's answer is not what its dialect promises: broken JSON, an error under 200, a cut stream."""

    code = "upstream_garbled"
    same_again = False  # it may have been paid for


class UpstreamCut(UpstreamGarbled):
    """The connection was lost in the middle of the provider's answer: it was on its way, and would be again."""

    code = "upstream_cut"


class UpstreamNotApi(UpstreamGarbled):
    """Something else answered in the place of the provider's API: a redirect, a page of maintenance."""

    code = "upstream_not_api"


class ModelDisabled(UpstreamError):
    """The deployment cannot be used as configured: the variable its key comes from is not set."""

    status = 503
    code = "model_disabled"
