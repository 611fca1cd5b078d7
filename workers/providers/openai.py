"""OpenAI's dialect, for OpenAI and every host of `hosts.toml`: what it says passes through as it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from pipeline.errors import InvalidRequest, UpstreamError, UpstreamGarbled, UpstreamNotApi
from pipeline.settings import Deployment
from workers.providers._dialect import UNDECODABLE, Answer, Endpoint, Fields, StreamReader, UpstreamRequest
from workers.providers._errors import error_in_stream, error_under_200, provider_error, said, said_in
from workers.providers._fields import encode_fields
from workers.providers._hosts import Host, endpoint, read_hosts
from workers.providers._sse import EventBuffer, events

_DONE: Final = b"data: [DONE]\n\n"
_ABSENT: Final = msgspec.Raw()
_MOST_TOKENS: Final = 2**53
"""Of a larger number floats, and with them the metrics, know no exact value."""
_LAST_WORDS: Final = frozenset({"response.completed", "response.failed", "response.incomplete"})


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None

    def counted(self) -> tuple[int, int]:
        return _sane(self.prompt_tokens or self.input_tokens), _sane(self.completion_tokens or self.output_tokens)


class _Whole(msgspec.Struct):
    object: str | None = None
    error: msgspec.Raw = _ABSENT
    usage: _Usage | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    error: msgspec.Raw = _ABSENT
    usage: _Usage | None = None


class _Event(msgspec.Struct):
    type: str = ""
    response: _Whole | None = None
    error: msgspec.Raw = _ABSENT


_decode_whole: Final = msgspec.json.Decoder(_Whole).decode
_decode_chunk: Final = msgspec.json.Decoder(_Chunk).decode
_decode_event: Final = msgspec.json.Decoder(_Event).decode


class OpenAI:
    """The OpenAI-compatible family."""

    def __init__(self, hosts: Mapping[str, Host]) -> None:
        self._hosts = MappingProxyType(dict(hosts))
        self.prefixes = tuple(hosts)

    def endpoint(self, prefix: str, deployment: Deployment, environment: Mapping[str, str]) -> Endpoint:
        """Return how `deployment` is called. Raises ModelDisabled when its key or its address is missing."""
        return endpoint(prefix, self._hosts[prefix], deployment, environment)

    def request(self, operation: str, fields: Fields, endpoint: Endpoint) -> UpstreamRequest:
        """Return the call for a body. Raises InvalidRequest for an operation the host does not speak."""
        url = endpoint.urls.get(operation)
        if url is None:
            raise InvalidRequest(
                f"{endpoint.prefix} does not speak `{operation}`",
                hint=f"call an operation it speaks: {', '.join(endpoint.urls)}",
                stage="dispatch",
            )
        return UpstreamRequest("POST", url, endpoint.headers, encode_fields(fields))

    def response(self, operation: str, body: bytes, endpoint: Endpoint) -> Answer:
        """Return the answer as it is. Raises UpstreamError when it is no JSON object, or an error."""
        try:
            whole = _decode_whole(body)
        except msgspec.ValidationError:
            whole = _lenient(body, endpoint)
        except UNDECODABLE:
            raise _unreadable(body, endpoint) from None
        # A failed Response carries an `error` field and is a proper answer all the same.
        if _present(whole.error) and not (operation == "responses" and whole.object == "response"):
            raise error_under_200(said(body), endpoint)
        return Answer(body, whole.usage.counted() if whole.usage else (0, 0))

    def stream(self, operation: str, endpoint: Endpoint) -> StreamReader:
        """Return a reader for a streamed completion or Response."""
        return _ResponseReader(endpoint) if operation == "responses" else _ChunkReader(endpoint)

    def error(self, status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint) -> UpstreamError:
        """Return the error in an answer that is no 200; a 200 asked as a stream gets here without being one."""
        if status != 200:
            return provider_error(status, headers, said(body), endpoint)
        try:
            self.response("", body, endpoint)
        except UpstreamError as error:
            return error
        return UpstreamGarbled(f"{endpoint.prefix} answered a streamed call without a stream", upstream_status=200)


class _Reader(ABC):
    """What both kinds of stream share: events pass on whole, up to the last word or a reported error."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.finished = False
        self.failure: UpstreamError | None = None
        self.usage = (0, 0)
        self._endpoint = endpoint
        self._buffer = EventBuffer()

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they arrived and return the events now complete. Raises UpstreamGarbled."""
        block = self._buffer.add(data)
        if not block:
            return block
        for start, content in events(block):
            # Nothing comes after the last word, and what follows a reported error has no answer to belong to.
            if self.finished or (content and not self._read(content)):
                return block[:start]
        return block

    @abstractmethod
    def _read(self, content: bytes) -> bool:
        """Look at one event; return whether it passes on."""

    def _flushed(self) -> bytes:
        """Return the last event when only its blank line is missing."""
        if self.finished or not self._buffer.rest():
            return b""
        try:
            return self.feed(b"\n\n")
        except UpstreamGarbled:
            raise self._cut() from None  # it was cut within the event

    def _failed(self, error: bytes) -> bool:
        self.failure = error_in_stream(said_in(error), self._endpoint)
        return False

    def _cut(self) -> UpstreamGarbled:
        return UpstreamGarbled(f"the stream of {self._endpoint.prefix} ended before its answer did")


class _ChunkReader(_Reader):
    """Chunks of a chat completion, ended by `[DONE]`."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._open: set[int] = set()
        self._closed: set[int] = set()

    def _read(self, content: bytes) -> bool:
        if content.strip() == b"[DONE]":
            self.finished = True
            return True
        try:
            chunk = _decode_chunk(content)
        except msgspec.ValidationError:
            return True  # JSON of an unknown shape is the host's business
        except UNDECODABLE:
            raise _not_json(self._endpoint) from None
        if _present(chunk.error):
            return self._failed(bytes(chunk.error))
        for choice in chunk.choices or ():
            (self._open if choice.finish_reason is None else self._closed).add(choice.index)
        if chunk.usage:
            self.usage = chunk.usage.counted()
        return True

    def close(self) -> bytes:
        """Return the `[DONE]` a host left out although every choice was finished. Raises UpstreamGarbled."""
        last = self._flushed()
        if self.finished:
            return last
        if self.failure or not self._closed or self._open - self._closed:
            raise self.failure or self._cut()
        self.finished = True
        return last + _DONE


class _ResponseReader(_Reader):
    """Events of a Response, ended by `response.completed`, `.failed` or `.incomplete`."""

    def _read(self, content: bytes) -> bool:
        if content.strip() == b"[DONE]":
            return True
        try:
            event = _decode_event(content)
        except msgspec.ValidationError:
            return True
        except UNDECODABLE:
            raise _not_json(self._endpoint) from None
        if event.type == "error" or (not event.type and _present(event.error)):
            return self._failed(bytes(event.error) if _present(event.error) else content)
        if event.type in _LAST_WORDS:
            self.finished = True
            if event.response and event.response.usage:
                self.usage = event.response.usage.counted()
        return True

    def close(self) -> bytes:
        """Return what is still held of the last event. Raises UpstreamGarbled for a cut stream."""
        last = self._flushed()
        if not self.finished:
            raise self.failure or self._cut()
        return last


def _sane(count: int | None) -> int:
    """Return a count as metrics and wire can take it: a host that counts wrongly has still answered."""
    return min(max(count or 0, 0), _MOST_TOKENS)


def _present(error: msgspec.Raw) -> bool:
    return bytes(error) not in {b"", b"null"}


def _lenient(body: bytes, endpoint: Endpoint) -> _Whole:
    """Return what can be told of an answer whose usage or id is of an unknown shape."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except UNDECODABLE:
        raise _unreadable(body, endpoint) from None
    return _Whole(error=fields.get("error", _ABSENT))


def _unreadable(body: bytes, endpoint: Endpoint) -> UpstreamGarbled:
    """Return the error for an answer that is no JSON object: a broken one may have been paid for, a page was not."""
    return _not_json(endpoint, UpstreamGarbled if body.lstrip().startswith(b"{") else UpstreamNotApi)


def _not_json(endpoint: Endpoint, kind: type[UpstreamGarbled] = UpstreamGarbled) -> UpstreamGarbled:
    return kind(
        f"{endpoint.prefix} answered with something that is not a JSON object",
        hint="check that the deployment's `api_base` is the root of an OpenAI-compatible API",
        upstream_status=200,
    )


provider = OpenAI(read_hosts())
