"""A server that speaks as much of S3 as blobs need, and fails as it is told."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

BUCKET = "s3://bucket/some/prefix"
SECRET = "the-secret-of-the-store"
VARIABLES = {"STORE_ID": "the-id", "STORE_SECRET": SECRET}

Fault = Callable[[str, str], tuple[int, str] | None]
"""By method and key: the status and code to answer with. A PUT that gets a fault has been done nevertheless."""


@dataclass
class ObjectServer:
    """What it has and does: objects by key, and every request as method and key."""

    url: str
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    fault: Fault = lambda method, key: None
    keeps_conditions: bool = True
    _uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, str]:
        """What `storage_options` say, with the values of VARIABLES."""
        return {
            "endpoint": self.url,
            "region": "us-east-1",
            "allow_http": "true",
            "access_key_id": VARIABLES["STORE_ID"],
            "secret_access_key": VARIABLES["STORE_SECRET"],
        }

    @property
    def storage_options(self) -> dict[str, str]:
        """The same as a configuration has them."""
        names = {"access_key_id": "os.environ/STORE_ID", "secret_access_key": "os.environ/STORE_SECRET"}
        return {**self.options, **names}

    def do(self, method: str, key: str, body: bytes, headers: Any) -> tuple[int, bytes]:
        """Return status and body of an answer."""
        self.requests.append((method, key))
        if method == "PUT":
            if key in self.objects and self.keeps_conditions and headers["if-none-match"] == "*":
                return 412, _error("PreconditionFailed")
            self.objects[key] = body
        if (failing := self.fault(method, key)) is not None:
            return failing[0], _error(failing[1])
        if method == "POST":  # the only one: several are deleted at once
            gone = re.findall(rb"<Key>.*?</Key>", body)
            for deleted in gone:
                self.objects.pop(deleted[5:-6].decode(), None)
            entries = b"".join(b"<Deleted>%b</Deleted>" % deleted for deleted in gone)
            return 200, b"<DeleteResult>%b</DeleteResult>" % entries
        found = self.objects.get(key)
        return (404, _error("NoSuchKey")) if found is None else (200, b"" if method == "PUT" else found)

    def upload(self, method: str, key: str, query: dict[str, list[str]], body: bytes) -> tuple[int, bytes]:
        """Begin, continue, complete or abort an upload in parts; each key has one at a time."""
        self.requests.append((method, key))
        if (failing := self.fault(method, key)) is not None:
            return failing[0], _error(failing[1])
        if "uploads" in query:
            self._uploads[key] = {}
            return 200, b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
        if method == "PUT":
            self._uploads[key][int(query["partNumber"][0])] = body
            return 200, b""
        parts = self._uploads.pop(key)
        if method == "DELETE":
            return 204, b""
        self.objects[key] = b"".join(parts[number] for number in sorted(parts))
        return 200, b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"

    def listing(self, prefix: str) -> bytes:
        """Return all keys below `prefix` at once."""
        entries = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(self.objects[key])}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag></Contents>"
            for key in sorted(self.objects)
            if key.startswith(prefix)
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{SECRET} is what the store says</Message></Error>".encode()


def _handler(served: ObjectServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # the client is gone
                self.close_connection = True

        def answer(self) -> None:
            parts = urlsplit(self.path)
            key, query = parts.path.removeprefix("/bucket").lstrip("/"), parse_qs(parts.query, keep_blank_values=True)
            body = self.rfile.read(int(self.headers["content-length"] or 0))
            if "list-type" in query:
                status, data = 200, served.listing(query["prefix"][0])
            elif "uploads" in query or "uploadId" in query:
                status, data = served.upload(self.command, key, query, body)
            else:
                status, data = served.do(self.command, key, body, self.headers)
            if status == 200 and (wanted := self.headers["range"]):
                first, last = wanted.removeprefix("bytes=").split("-")
                status, whole = 206, len(data)
                data = data[int(first) : int(last) + 1]
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.send_header("etag", hashlib.md5(data).hexdigest())
            self.send_header("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            if status == 206:
                self.send_header("content-range", f"bytes {first}-{int(first) + len(data) - 1}/{whole}")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815 - by these names it is called

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def run_object_server() -> Iterator[ObjectServer]:
    """Serve on a thread."""
    served = ObjectServer("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(served))
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
