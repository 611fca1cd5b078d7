"""A provider that calls nobody: its answer shows the messages it received, for demos and tests."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.errors import InvalidRequest, UpstreamError
from pipeline.operations import OPERATIONS
from pipeline.settings import Deployment
from workers.providers._dialect import UNDECODABLE, Answer, Endpoint, Fields, LocalAnswer, StreamReader
from workers.providers._errors import provider_error, said
from workers.providers._local import local_answer, shown_messages
from workers.providers._local_texts import text_answer
from workers.providers.openai import provider as openai


class Echo:
    """Answers with its messages, one per line as `role: content`; a token is a word."""

    prefixes = ("echo",)

    def endpoint(self, prefix: str, deployment: Deployment, environment: Mapping[str, str]) -> Endpoint:
        """Return an endpoint that needs no key and has no address."""
        return Endpoint(prefix=prefix, urls={}, headers={})

    def request(self, operation: str, fields: Fields, endpoint: Endpoint) -> LocalAnswer:
        """Return the answer itself. Raises InvalidRequest for messages, or a text, that are none."""
        if OPERATIONS[operation].texts:
            return text_answer(operation, fields, None, None)
        try:
            text = shown_messages(operation, fields)
        except UNDECODABLE:
            name = OPERATIONS[operation].content
            raise InvalidRequest(
                f"`{name}` is not a list of messages", hint="send objects with `role` and `content`", param=name
            ) from None
        words = len(text.split())
        return local_answer(operation, fields, text, (words, words))

    def response(self, operation: str, body: bytes, endpoint: Endpoint) -> Answer:
        """Read an answer of its own, which is in OpenAI's dialect."""
        return openai.response(operation, body, endpoint)

    def stream(self, operation: str, endpoint: Endpoint) -> StreamReader:
        """Read a stream of its own, which is in OpenAI's dialect."""
        return openai.stream(operation, endpoint)

    def error(self, status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint) -> UpstreamError:
        """Read an error in OpenAI's dialect; it answers with none itself."""
        return provider_error(status, headers, said(body), endpoint)


provider = Echo()
