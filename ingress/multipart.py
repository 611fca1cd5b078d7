"""An upload's form: its few fields, and the contents of its one file as they arrive."""

from __future__ import annotations

import logging
import re
from typing import Final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from pipeline.errors import InvalidRequest

MAX_PARTS: Final = 16
MAX_FIELD_BYTES: Final = 1024
MAX_FILENAME: Final = 255

FILE: Final = "file"
"""Name of the part that holds the file."""

_PATH: Final = re.compile(r"[/\\]")

# It warns of everything it refuses: a line for each request of whoever sends rubbish.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


class Form:
    """The parts of a `multipart/form-data` body. `fields` and `filename` are there as far as they have arrived."""

    def __init__(self, content_type: str) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._parts = 0
        self._ended = False
        self._header = self._value = b""
        self._headers: dict[str, str] = {}
        self._field: str | None = None
        """Name of the field that is arriving; None: the file is."""
        self._text = b""
        self._contents: list[bytes] = []
        self._parser = MultipartParser(
            _boundary(content_type),
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> list[bytes]:
        """Return what `data` holds of the file's contents. Raises InvalidRequest."""
        try:
            self._parser.write(data)
        except FormParserError:
            raise InvalidRequest(
                "the body is not the form its content-type announces; leave both to a client"
            ) from None
        contents, self._contents = self._contents, []
        return contents

    def close(self) -> None:
        """The body is complete. Raises InvalidRequest if the form is not."""
        if not self._ended:
            raise InvalidRequest("the form breaks off; its last boundary is missing")
        if self.filename is None:
            raise InvalidRequest("`file` is missing; send the contents under this name", param=FILE)

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(
                f"the form has more than {MAX_PARTS} parts; send `file`, `purpose` and `expires_after`"
            )
        self._headers = {}
        self._text = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._header = self._value = b""

    def _headers_end(self) -> None:
        """Find out what the part is."""
        disposition, options = parse_options_header(self._headers.get("content-disposition"))
        name, filename = _utf8(options.get(b"name", b"")), options.get(b"filename")
        if disposition != b"form-data" or not name:
            raise InvalidRequest("a part of the form has no name; give each a content-disposition")
        if self._headers.get("content-transfer-encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
            raise InvalidRequest("a part of the form is encoded; send it as it is", param=name)
        if filename is None and name != FILE:
            self._begin_field(name)
        else:
            self._begin_file(name, filename)

    def _begin_field(self, name: str) -> None:
        if name in self.fields:
            raise InvalidRequest(f"`{name}` comes twice; send it once", param=name)
        self._field = name

    def _begin_file(self, name: str, filename: bytes | None) -> None:
        if name != FILE:
            raise InvalidRequest("a file's contents belong under the name `file`", param=name)
        if filename is None:
            raise InvalidRequest("`file` is a text; send it as a file, with a filename (curl: file=@NAME)", param=FILE)
        if self.filename is not None:
            raise InvalidRequest("there is more than one `file`; send each by itself", param=FILE)
        self._field = None
        self.filename = base_name(_utf8(filename))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._contents.append(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > MAX_FIELD_BYTES:
            raise InvalidRequest(f"`{self._field}` has more than {MAX_FIELD_BYTES} bytes", param=self._field)

    def _part_end(self) -> None:
        if self._field is not None:
            self.fields[self._field] = _utf8(self._text)

    def _end(self) -> None:
        self._ended = True


def base_name(text: str) -> str:
    """Return what follows the last slash of either kind, without control and direction characters."""
    name = "".join(filter(str.isprintable, _PATH.split(text)[-1]))[:MAX_FILENAME]
    return name if name.strip(" .") else FILE


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 70:  # as RFC 2046 allows
        raise InvalidRequest("send a file as multipart/form-data, with the content-type your client makes for it")
    return boundary


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("a text in the form is not UTF-8") from None
