"""S27, S28, S33: whatever is uploaded, its form and its lines are read, or refused in words; nothing else is raised."""

from __future__ import annotations

import json
from typing import Any

from fakes.configs import settings
from fakes.fuzzing import fuzz
from fakes.uploads import JSONL, field, file_part, form
from hypothesis import given
from hypothesis import strategies as st

from ingress.multipart import Form
from ingress.transfer import wanted_range
from pipeline.batch_requests import Judge
from pipeline.batch_validation import count_inputs
from pipeline.catalog import Catalog
from pipeline.errors import InvalidRequest, RangeNotSatisfiable
from pipeline.intake import BATCHED
from pipeline.stores.batch_lines import BatchLine, LineError, check_line
from pipeline.stores.lines import Line, Splitter

CATALOG = Catalog(settings())
CONTENT_TYPE = "multipart/form-data; boundary=x"
NOISE = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b"-", b"--", b"--x", b"\r\n--x", b"x", b" ", b"\0", b"--\r\n", b"name="])
    | st.binary(max_size=4),
    max_size=40,
).map(b"".join)
PARTS = st.lists(
    st.sampled_from([field("purpose", "batch"), file_part(), b"\r\n", b"a: b\r\n\r\n"]) | NOISE, max_size=5
)


def read(body: bytes, size: int) -> tuple[Form, bytes]:
    """Return the form in `body`, which comes in pieces of `size` bytes, and the contents of its file."""
    found = Form(CONTENT_TYPE)
    contents = b"".join(b"".join(found.feed(body[n : n + size])) for n in range(0, len(body), size))
    found.close()
    return found, contents


@fuzz
@given(PARTS.map(lambda parts: form(*parts)) | NOISE, st.integers(1, 50))
def test_a_form_is_read_or_refused(body: bytes, size: int) -> None:
    try:
        found, _ = read(body, size)
    except InvalidRequest:
        pass
    else:
        assert found.filename is not None


@fuzz
@given(NOISE.filter(lambda noise: b"\r\n--x" not in b"\r\n" + noise + b"\r\n"), st.integers(1, 50))
def test_contents_that_look_like_boundaries_are_contents(noise: bytes, size: int) -> None:
    found, contents = read(form(field("purpose", "batch"), file_part(noise)), size)
    assert (found.fields, contents) == ({"purpose": "batch"}, noise)


@fuzz
@given(
    st.binary(max_size=80).map(lambda data: data.decode("latin-1"))
    | st.sampled_from(["", "multipart/form-data", CONTENT_TYPE + "\0", CONTENT_TYPE + '"'])
)
def test_a_content_type_begins_a_form_or_is_refused(content_type: str) -> None:
    try:
        Form(content_type)
    except InvalidRequest:
        pass


@fuzz
@given(st.binary(max_size=60) | st.integers(0, len(JSONL)).flatmap(
    lambda at: st.binary(max_size=9).map(lambda new: JSONL[:at] + new + JSONL[at:])
))  # fmt: skip
def test_a_line_is_a_request_or_an_error(data: bytes) -> None:
    for line in (*Splitter(1000).feed(data + b"\n"), Line(1, 0, 0, data)):
        found = check_line(line, "/v1/chat/completions")
        assert isinstance(found, BatchLine) or (
            isinstance(found, LineError) and found.code and found.line == line.number
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
NAMES = st.sampled_from(["messages", "input", "prompt", "prompt_id", "model", "stream", "timeout", "stop", "n"])


@fuzz
@given(st.sampled_from(sorted(BATCHED)), st.dictionaries(NAMES, JSON, max_size=5), st.sampled_from(["gpt-4", "x", ""]))
def test_whatever_a_body_holds_it_is_judged_and_its_texts_are_counted(
    url: str, body: dict[str, Any], model: str
) -> None:
    whole = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": model, **body}}
    found = Judge(url, (), CATALOG).read(Line(7, 0, 0, json.dumps(whole).encode()))
    if isinstance(found, LineError):
        assert (found.line, bool(found.code), bool(found.message)) == (7, True, True)
    else:
        assert count_inputs(found) == (
            len(body["input"])
            if isinstance(given := body.get("input"), list) and (not given or isinstance(given[0], str | list))
            else 1
        )


@fuzz
@given(
    st.text("bytes=-, 0123456789", max_size=30).map("bytes=".__add__) | st.text("bytes=-, ", max_size=20),
    st.integers(0, 10**6),
)
def test_a_range_is_inside_the_file_or_refused(header: str, size: int) -> None:
    try:
        found = wanted_range(header, size)
    except RangeNotSatisfiable:
        pass
    else:
        assert found is None or 0 <= found[0] < found[1] <= size
