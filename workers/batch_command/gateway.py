"""The gateway as its client sees it: files and batches over HTTP, and every failure in words."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

import httpx2
import msgspec

from pipeline.errors import ConfigurationError, NotFound, PipelineError, TransportError
from pipeline.exposure import is_loopback
from pipeline.stores.batch_lines import LineError
from pipeline.stores.batch_progress import Progress
from pipeline.stores.batch_records import TERMINAL

_CHECKSUM: Final = re.compile(r'(?:W/)?"([0-9a-f]{64})"')
_UNSAFE: Final = re.compile(r'[\x00-\x1f"\\\\]')
_BUSY: Final = (429, 500, 502, 503, 504)
_TIMEOUT: Final = httpx2.Timeout(30.0, connect=5.0)
_UPLOAD_TIMEOUT: Final = httpx2.Timeout(600.0, connect=5.0, write=60.0)
"""The answer comes when all of the file is on the disk, and looked at if the gateway does so."""


class Counts(msgspec.Struct, frozen=True):
    """Lines of a batch; `total` is 0 until they were counted."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Tokens(msgspec.Struct, frozen=True):
    """Tokens of a batch."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0


class Errors(msgspec.Struct, frozen=True):
    """Why a batch failed as a whole."""

    data: tuple[LineError, ...] = ()


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch object says, as far as it is looked at."""

    id: str
    status: str
    endpoint: str
    input_file_id: str
    created_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    expired_at: int | None = None
    cancelled_at: int | None = None
    failed_at: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: Errors | None = None
    request_counts: Counts | None = None
    usage: Tokens | None = None
    metadata: dict[str, str] | None = None
    promptmill: Progress | None = None

    @property
    def counts(self) -> Counts:
        """Its lines."""
        return self.request_counts or Counts()

    @property
    def done(self) -> int:
        """Lines that have an outcome."""
        return self.counts.completed + self.counts.failed

    @property
    def ended(self) -> bool:
        """Whether nothing changes any more."""
        return self.status in TERMINAL

    @property
    def has_results(self) -> bool:
        """Whether there is a file of answers or of errors."""
        return self.output_file_id is not None or self.error_file_id is not None

    @property
    def refused(self) -> bool:
        """Whether it failed and nothing of it ran; one that lost its input half-way has results."""
        return self.status == "failed" and not self.has_results

    @property
    def seconds(self) -> int:
        """How long its lines ran, as far as it has ended."""
        end = self.completed_at or self.expired_at or self.cancelled_at or self.failed_at
        return max(0, end - self.in_progress_at) if end and self.in_progress_at else 0


class Content(NamedTuple):
    """What a file has from some place on; `size` and `sha256` are those of all of it."""

    size: int
    sha256: str
    pieces: Iterator[bytes]


class GatewayAway(TransportError):
    """The gateway cannot be reached, or cannot serve now: it may later."""


class GatewayGone(TransportError):
    """The gateway has ended, and nobody starts it again."""


class _Page(msgspec.Struct, frozen=True):
    data: tuple[msgspec.Raw, ...]
    last_id: str | None = None
    has_more: bool = False


class _Error(msgspec.Struct, frozen=True):
    message: str = ""
    hint: str = ""


class _Refusal(msgspec.Struct, frozen=True):
    error: _Error = _Error()


class _File(msgspec.Struct, frozen=True):
    id: str


read_batch: Final = msgspec.json.Decoder(Batch).decode
_read_page: Final = msgspec.json.Decoder(_Page).decode
_read_refusal: Final = msgspec.json.Decoder(_Refusal).decode
_read_file: Final = msgspec.json.Decoder(_File).decode


class Gateway:
    """A gateway that `find` says the address of: one that was started again may have another."""

    def __init__(self, find: Callable[[], str], key: str) -> None:
        self._find = find
        self._headers = {"Authorization": f"Bearer {key}"}
        self.url = find()
        self._client = self._connect()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def check(self) -> None:
        """See that the gateway is there and takes the key. Raises GatewayAway and ConfigurationError."""
        self._ask("GET", "/v1/batches", params={"limit": 1})

    def upload(self, name: str, size: int, pieces: Iterator[bytes]) -> str:
        """Upload the input of a batch of `size` bytes and return its file's id."""
        boundary, name = secrets.token_hex(16), _UNSAFE.sub("_", name)
        head = (
            f'--{boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()

        def form() -> Iterator[bytes]:
            yield head
            yield from pieces
            yield tail

        headers = {
            "content-type": f"multipart/form-data; boundary={boundary}",
            "content-length": str(len(head) + size + len(tail)),
        }
        answer = self._ask("POST", "/v1/files", content=form(), headers=headers, timeout=_UPLOAD_TIMEOUT)
        return _read_file(answer).id

    def create(self, file_id: str, endpoint: str, metadata: dict[str, str]) -> Batch:
        """Make a batch of an uploaded file."""
        wanted = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h", "metadata": metadata}
        return read_batch(self._ask("POST", "/v1/batches", json=wanted))

    def batch(self, batch_id: str) -> bytes:
        """Return a batch object as it came; `read_batch` reads it. Raises NotFound."""
        return self._ask("GET", f"/v1/batches/{quote(batch_id, safe='')}")

    def cancel(self, batch_id: str) -> bytes:
        """Cancel a batch and return it. Raises NotFound."""
        return self._ask("POST", f"/v1/batches/{quote(batch_id, safe='')}/cancel")

    def batches(self) -> Iterator[bytes]:
        """Yield every batch object, newest first."""
        query: dict[str, Any] = {"limit": 100}
        while True:
            page = _read_page(self._ask("GET", "/v1/batches", params=query))
            yield from map(bytes, page.data)
            if not page.has_more:
                return
            query["after"] = page.last_id

    @contextmanager
    def content(self, file_id: str, start: int = 0) -> Iterator[Content]:
        """
        Give a file's bytes from `start` on, which the caller compares with its checksum.

        Raises NotFound, ConfigurationError and GatewayAway.
        """
        # Asked for as a part always: of a damaged whole the gateway withholds the end, as if it had gone away.
        headers = {"range": f"bytes={start}-"}
        with (
            self._speaking(),
            self._client.stream("GET", f"/v1/files/{file_id}/content", headers=headers) as answer,
        ):
            if answer.status_code == 416:  # there is nothing after `start`
                yield Content(start, self._checksum(answer), iter(()))
                return
            if answer.is_error:
                answer.read()
                self._refuse(answer)
            if answer.status_code != 206 and start:
                raise GatewayAway("the gateway did not answer with the part of a file that was asked for")
            size = start + int(answer.headers["content-length"])
            yield Content(size, self._checksum(answer), answer.iter_bytes())

    def _checksum(self, answer: httpx2.Response) -> str:
        """Return the SHA-256 of the file an answer is about. Raises ConfigurationError."""
        if told := _CHECKSUM.fullmatch(answer.headers.get("etag", "")):
            return told[1]
        raise ConfigurationError(
            f"{self.url} does not say a file's checksum: the header ETag is lost on the way",
            hint="have the proxy let it through, or give the gateway's own address with --url",
        )

    def _ask(self, method: str, path: str, **options: Any) -> bytes:
        with self._speaking():
            answer = self._client.request(method, path, **options)
        if answer.is_error:
            self._refuse(answer)
        return answer.content

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Turn what the connection may come to into GatewayAway, and look for the gateway anew. Raises GatewayGone."""
        try:
            yield
        except httpx2.TransportError as error:
            url, said = self.url, str(error) or type(error).__name__
            self._client.close()
            try:
                self.url = self._find()
            except GatewayGone:
                raise
            except PipelineError:
                pass  # it is not there yet: ask again where it was
            self._client = self._connect()
            raise GatewayAway(
                f"the gateway at {url} cannot be reached ({said})", hint="start it with `promptmill up`, or check --url"
            ) from None

    def _refuse(self, answer: httpx2.Response) -> None:
        """Raise what an error of the gateway means here."""
        try:
            said = _read_refusal(answer.content).error
        except msgspec.DecodeError:
            raise ConfigurationError(
                f"{self.url} answered {answer.status_code}, and not as promptmill does", hint="check --url"
            ) from None
        if answer.status_code in _BUSY:
            raise GatewayAway(f"the gateway at {self.url} cannot serve now: {said.message}", hint=said.hint)
        if answer.status_code == 404:
            raise NotFound(said.message, hint=said.hint)
        if answer.status_code == 401:
            remedy = "set PROMPTMILL_API_KEY to a key of this gateway, or give --key"
            raise ConfigurationError(f"the gateway at {self.url} does not take the key: {said.message}", hint=remedy)
        raise ConfigurationError(f"the gateway refused it: {said.message}", hint=said.hint)

    def _connect(self) -> httpx2.Client:
        url = self.url.rstrip("/").removesuffix("/v1")
        # No proxy stands before a gateway on this machine, whatever the environment says for others.
        near = is_loopback(urlsplit(url).hostname or "")
        return httpx2.Client(base_url=url, headers=self._headers, timeout=_TIMEOUT, trust_env=not near)
