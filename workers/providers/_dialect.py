"""What a provider is: the dialect of a company as pure functions, without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from pipeline.errors import UpstreamError
from pipeline.settings import Deployment

UNDECODABLE: Final = (ValueError, RecursionError)
"""What decoding JSON raises: msgspec's errors and UnicodeDecodeError are ValueErrors."""

Fields = dict[str, msgspec.Raw]
"""A body's top level; the values stay the bytes they came as."""


class Endpoint(msgspec.Struct, frozen=True):
    """A deployment as its provider calls it: made once, shared by all its requests."""

    prefix: str
    """What its model name starts with, for messages: `openai`."""
    urls: Mapping[str, str]
    """Where each operation it speaks goes."""
    headers: Mapping[str, str]
    secrets: tuple[str, ...] = ()
    """Its key and all else it is called with that must not be told, to take them out of what the provider says."""

    def __repr__(self) -> str:
        return f"Endpoint({self.prefix})"


class UpstreamRequest(msgspec.Struct, frozen=True):
    """One provider call."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"UpstreamRequest({self.method} {self.url}, {len(self.body)} bytes)"


class LocalAnswer(msgspec.Struct, frozen=True):
    """An answer for which nobody needs to be called: a body, or the events of a stream."""

    body: bytes = b""
    events: tuple[bytes, ...] = ()
    usage: tuple[int, int] = (0, 0)


class Answer(msgspec.Struct, frozen=True):
    """A provider's answer in the client's dialect, and the tokens it counted (prompt, completion)."""

    body: bytes
    usage: tuple[int, int] = (0, 0)


class StreamReader(Protocol):
    """Follows one streamed answer and passes whole events on in the client's dialect."""

    finished: bool
    """The stream said its last word."""
    failure: UpstreamError | None
    """What the stream reported instead of going on; set together with the events before it."""
    usage: tuple[int, int]

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they arrived and return the events now complete. Raises UpstreamGarbled."""

    def close(self) -> bytes:
        """Take note that the connection ended; return what is still owed. Raises UpstreamGarbled for a cut stream."""


class Provider(Protocol):
    """A dialect as its one file exports it, under the name `provider`."""

    prefixes: tuple[str, ...]
    """What `litellm_params.model` starts with when this dialect serves it."""

    def endpoint(self, prefix: str, deployment: Deployment, environment: Mapping[str, str]) -> Endpoint:
        """Return how `deployment` is called. Raises ModelDisabled when it cannot be, as it is configured."""

    def request(self, operation: str, fields: Fields, endpoint: Endpoint) -> UpstreamRequest | LocalAnswer:
        """Return the call for a body with the provider's model name in it. Raises InvalidRequest."""

    def response(self, operation: str, body: bytes, endpoint: Endpoint) -> Answer:
        """Return the answer in a 200. Raises UpstreamGarbled when it is none."""

    def stream(self, operation: str, endpoint: Endpoint) -> StreamReader:
        """Return a reader for one streamed answer."""

    def error(self, status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint) -> UpstreamError:
        """Return the error in any other answer, with nothing secret in it."""
