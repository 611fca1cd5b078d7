"""What every error has: words for people, and fields for clients."""

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
