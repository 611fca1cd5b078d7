"""What a line of a batch asks for, judged by the rules of live requests."""

from __future__ import annotations

import msgspec

from pipeline.catalog import Catalog
from pipeline.errors import RequestError
from pipeline.intake import BATCHED, Asked, find_prompt
from pipeline.job import PromptRef
from pipeline.operations import OPERATIONS
from pipeline.stores.batch_lines import BatchLine, LineError, check_line
from pipeline.stores.lines import Line
from pipeline.views import View, decode_view


class Request(msgspec.Struct, frozen=True):
    """What a line asks for, once it is known that it can run."""

    custom_id: str
    body: bytes
    model: str
    view: View
    prompt: PromptRef | None


class Judge:
    """Judges lines of a batch for `endpoint`, whose key may use the models `allowed` (none named: all)."""

    def __init__(self, endpoint: str, allowed: tuple[str, ...], catalog: Catalog) -> None:
        self._endpoint = endpoint
        self._allowed = allowed
        self._catalog = catalog
        self.operation = BATCHED[endpoint]

    def read(self, line: Line) -> Request | LineError:
        """Return what a line asks for, or the first thing that is wrong with it."""
        checked = check_line(line, self._endpoint)
        if isinstance(checked, LineError):
            return checked
        try:
            return self._judge(checked)
        except RequestError as error:
            param = f"body.{error.param}" if error.param else "body"
            return LineError(error.code, error.message, param, line.number)

    def _judge(self, line: BatchLine) -> Request:
        body, model = bytes(line.body), line.model or OPERATIONS[self.operation].model
        view = decode_view(body)
        asked = Asked(view, self.operation, model, self._allowed)
        return Request(line.custom_id, body, model, view, find_prompt(asked, self._catalog))
