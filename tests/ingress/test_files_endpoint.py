"""Files over HTTP: OpenAI's shapes, ranges, pages, and what is refused."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from fakes.edges import MASTER, TEAM, calling, read_all, serving
from fakes.openai_shapes import check_deleted, check_page
from fakes.transport import FakeTransport
from fakes.uploads import FILE_KEYS, JSONL, field, file_part, file_settings, form, kept, put

from ingress.multipart import base_name

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with calling(FakeTransport(), file_settings(tmp_path), TEAM) as found:
        yield found


async def error_of(response: httpx2.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


# Uploads


async def test_an_upload_is_answered_with_openais_object(client: httpx2.AsyncClient) -> None:
    response = await put(client)
    file = response.json()
    assert response.status_code == 200
    assert set(file) == FILE_KEYS
    assert re.fullmatch(r"file-[0-9a-f]{32}", file["id"])
    assert (file["object"], file["bytes"], file["filename"], file["purpose"]) == (
        "file",
        len(JSONL),
        "in.jsonl",
        "batch",
    )
    assert (file["status"], file["status_details"]) == ("processed", None)
    assert file["expires_at"] == file["created_at"] + 30 * 86400


async def test_user_data_does_not_expire_unless_asked(client: httpx2.AsyncClient) -> None:
    assert (await put(client, purpose="user_data")).json()["expires_at"] is None
    wish = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = (await put(client, purpose="user_data", **wish)).json()
    assert file["expires_at"] == file["created_at"] + 3600


@pytest.mark.parametrize("path", ["/files", "/v1/files"])
@pytest.mark.parametrize("purpose_first", [True, False])
async def test_fields_come_in_any_order(client: httpx2.AsyncClient, path: str, purpose_first: bool) -> None:
    parts = [field("purpose", "batch"), file_part()]
    body = form(*(parts if purpose_first else reversed(parts)))
    for content_type in ("multipart/form-data; boundary=x", 'Multipart/Form-Data; charset=utf-8; boundary="x"'):
        response = await client.post(path, content=body, headers={"content-type": content_type})
        assert response.json()["bytes"] == len(JSONL)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
async def test_however_the_body_is_cut_the_contents_are_whole(client: httpx2.AsyncClient, size: int) -> None:
    contents = b"\r\n--\r\n--x \r\n-" * 50
    body = form(file_part(contents, b"odd.jsonl"), field("purpose", "batch"), boundary=b"xyz")

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    headers = {"content-type": "multipart/form-data; boundary=xyz"}
    file = (await client.post("/v1/files", content=pieces(), headers=headers)).json()
    assert (await client.get(f"/v1/files/{file['id']}/content")).content == contents


BAD_FORMS: dict[str, tuple[bytes, str | None]] = {
    "no purpose": (form(file_part()), "purpose"),
    "no file": (form(field("purpose", "batch")), "file"),
    "nothing": (form(), "file"),
    "an empty file": (form(field("purpose", "batch"), file_part(b"")), "file"),
    "a file that is a text": (form(field("purpose", "batch"), field("file", "in.jsonl")), "file"),
    "a file under another name": (form(file_part(name=b"data"), field("purpose", "batch")), "data"),
    "a purpose twice": (form(field("purpose", "batch"), field("purpose", "batch"), file_part()), "purpose"),
    "a purpose of no use here": (form(field("purpose", "fine-tune"), file_part()), "purpose"),
    "a purpose only we give": (form(file_part(), field("purpose", "batch_output")), "purpose"),
    "a field that is too long": (form(field("purpose", "b" * 2000), file_part()), "purpose"),
    "a field that is not UTF-8": (form(b'content-disposition: form-data; name="purpose"\r\n\r\n\xff'), None),
    "a part without a name": (form(b"content-disposition: form-data\r\n\r\nx"), None),
    "a part without headers": (form(b"\r\nx"), None),
    "an encoded part": (form(b"content-transfer-encoding: base64\r\n" + file_part()), "file"),
    "seconds without an anchor": (
        form(field("purpose", "batch"), field("expires_after[seconds]", "3600"), file_part()),
        "expires_after[anchor]",
    ),
    "no end": (form(field("purpose", "batch"), file_part())[:-6], None),
    "garbage": (b"garbage", None),
    "nothing at all": (b"", None),
}
for value in ("3599", "2592001", "", "x", "-1", "1e4", "٣٦٠٠", "9" * 100):
    anchored = field("expires_after[anchor]", "created_at")
    BAD_FORMS[f"{value[:10]} seconds"] = (
        form(field("purpose", "batch"), anchored, field("expires_after[seconds]", value), file_part()),
        "expires_after[seconds]",
    )


@pytest.mark.parametrize("name", BAD_FORMS)
async def test_a_form_that_is_wrong_is_a_400_and_stores_nothing(
    client: httpx2.AsyncClient, tmp_path: Path, name: str
) -> None:
    body, param = BAD_FORMS[name]
    headers = {"content-type": "multipart/form-data; boundary=x"}
    response = await client.post("/v1/files", content=body, headers=headers)
    assert await error_of(response) == (400, "invalid_request", param)
    assert kept(tmp_path) == []


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=x"])
async def test_a_body_that_is_no_form_is_a_400(client: httpx2.AsyncClient, content_type: str) -> None:
    headers = {"content-type": content_type}
    response = await client.post("/v1/files", content=form(file_part()), headers=headers)
    assert await error_of(response) == (400, "invalid_request", None)


async def test_a_file_above_the_limit_is_a_413_also_when_its_length_is_not_announced(tmp_path: Path) -> None:
    async with calling(FakeTransport(), file_settings(tmp_path, max_upload_bytes=1000), TEAM) as client:
        assert (await put(client, b"x" * 1000)).status_code == 200
        before = kept(tmp_path)
        for size in (1001, 3 * 2**20):
            body = form(field("purpose", "batch"), file_part(b"x" * size))

            async def pieces(body: bytes = body) -> AsyncIterator[bytes]:
                yield body

            for content in (body, pieces()):
                headers = {"content-type": "multipart/form-data; boundary=x"}
                response = await client.post("/v1/files", content=content, headers=headers)
                assert (await error_of(response))[:2] == (413, "request_too_large")
        assert kept(tmp_path) == before


async def test_the_limits_of_other_bodies_do_not_count_for_uploads(tmp_path: Path) -> None:
    settings: Any = file_settings(tmp_path)
    async with calling(FakeTransport(), settings, TEAM) as client:
        contents = b"x" * (settings.ingress.max_body_bytes + 1)
        assert (await put(client, contents)).json()["bytes"] == len(contents)


async def test_uploads_in_flight_are_bounded(tmp_path: Path) -> None:
    async with calling(FakeTransport(), file_settings(tmp_path, max_transfers=1), TEAM) as client:
        file_id = (await put(client)).json()["id"]
        client.edge.transfers = 1  # type: ignore[attr-defined]
        for response in (await put(client), await client.get(f"/v1/files/{file_id}/content")):
            assert (await error_of(response))[:2] == (429, "backlog_full")
            assert response.headers["retry-after"] == "1"


async def test_a_full_disk_is_a_507_and_leaves_nothing(tmp_path: Path) -> None:
    async with calling(FakeTransport(), file_settings(tmp_path, min_free_bytes=2**60), TEAM) as client:
        response = await put(client)
        assert (await error_of(response))[:2] == (507, "storage_full")
        assert response.headers["x-should-retry"] == "false"
    assert kept(tmp_path) == []


# Retrieving, listing, deleting


async def test_a_file_is_found_until_it_is_deleted(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    file = (await put(client)).json()
    path = f"/v1/files/{file['id']}"
    assert (await client.get(path)).json() == file
    deleted = (await client.delete(path)).json()
    check_deleted(deleted)
    assert deleted["id"] == file["id"]
    for method, gone in (("GET", path), ("GET", path + "/content"), ("DELETE", path)):
        assert await error_of(await client.request(method, gone)) == (404, "file_not_found", "id")
    assert kept(tmp_path) == []


async def test_pages_follow_each_other_in_either_order(client: httpx2.AsyncClient) -> None:
    made = [(await put(client, name=f"{n}.jsonl", purpose=("batch", "user_data")[n % 2])).json() for n in range(5)]
    for order, expected in (("desc", made[::-1]), ("asc", made)):
        seen: list[Any] = []
        query: dict[str, Any] = {"limit": 2, "order": order}
        while True:
            page = (await client.get("/v1/files", params=query)).json()
            check_page(page)
            assert set(page) == {"object", "data", "first_id", "last_id", "has_more"}
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            seen += page["data"]
            query["after"] = page["last_id"]
            if not page["has_more"]:
                break
        assert seen == expected
    only = (await client.get("/v1/files", params={"purpose": "user_data"})).json()["data"]
    assert only == [made[3], made[1]]


async def test_a_list_without_files_says_so(client: httpx2.AsyncClient) -> None:
    nothing = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert (await client.get("/v1/files")).json() == nothing


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=10001", "limit"), ("limit=x", "limit"), ("limit=" + "9" * 5000, "limit"),
     ("order=up", "order"), ("&".join(f"{n}=1" for n in range(40)), None)],
)  # fmt: skip
async def test_a_query_that_is_wrong_is_a_400(client: httpx2.AsyncClient, query: str, param: str | None) -> None:
    assert await error_of(await client.get(f"/v1/files?{query}")) == (400, "invalid_request", param)


# Contents


RANGES = {
    None: (200, None, slice(None)),
    "bytes=0-9": (206, "bytes 0-9/100", slice(0, 10)),
    "bytes=90-": (206, "bytes 90-99/100", slice(90, 100)),
    "bytes=90-1000": (206, "bytes 90-99/100", slice(90, 100)),
    "bytes=-10": (206, "bytes 90-99/100", slice(90, 100)),
    "bytes=-1000": (206, "bytes 0-99/100", slice(0, 100)),
    "lines=0-9": (200, None, slice(None)),
}
CONTENTS = bytes(range(100))


@pytest.mark.parametrize("wanted", RANGES)
async def test_contents_come_whole_or_in_one_range(client: httpx2.AsyncClient, wanted: str | None) -> None:
    status, content_range, part = RANGES[wanted]
    path = f"/v1/files/{(await put(client, CONTENTS)).json()['id']}/content"
    headers = {"range": wanted} if wanted else {}
    response = await client.get(path, headers=headers)
    assert (response.status_code, response.headers.get("content-range")) == (status, content_range)
    assert response.content == CONTENTS[part]
    assert response.headers["content-length"] == str(len(CONTENTS[part]))
    assert response.headers["accept-ranges"] == "bytes"
    head = await client.head(path, headers=headers)
    assert (head.status_code, head.content) == (status, b"")
    assert head.headers["content-length"] == response.headers["content-length"]


async def test_a_range_holds_for_the_contents_it_was_begun_with(client: httpx2.AsyncClient) -> None:
    path = f"/v1/files/{(await put(client, CONTENTS)).json()['id']}/content"
    etag = (await client.get(path)).headers["etag"]
    for value, status in ((etag, 206), ('"other"', 200)):
        response = await client.get(path, headers={"range": "bytes=1-2", "if-range": value})
        assert response.status_code == status
    beyond = await client.get(path, headers={"range": "bytes=100-"})
    assert (beyond.status_code, beyond.headers["etag"]) == (416, etag), "who has all of it can compare it"


async def test_a_file_that_is_cut_short_while_it_is_sent_ends_the_connection(tmp_path: Path) -> None:
    size = 16 * 2**20
    async with (
        serving(FakeTransport(), file_settings(tmp_path)) as served,
        httpx2.AsyncClient(base_url=served.url, headers={"authorization": f"Bearer {TEAM}"}) as client,
    ):
        file_id = (await put(client, bytes(size))).json()["id"]
        (stored,) = [path for path in (tmp_path / "files").iterdir() if path.stat().st_size == size]
        async with await served.connect() as stream:
            await stream.send(
                f"GET /v1/files/{file_id}/content HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TEAM}\r\n\r\n".encode()
            )
            assert b"content-length: 16777216" in await stream.receive()
            os.truncate(stored, size // 2)
            with anyio.fail_after(10):
                assert len(await read_all(stream)) < size


async def test_a_file_that_is_not_what_was_stored_is_not_sent_to_its_end(tmp_path: Path) -> None:
    contents = bytes(2**20)
    async with (
        serving(FakeTransport(), file_settings(tmp_path)) as served,
        httpx2.AsyncClient(base_url=served.url, headers={"authorization": f"Bearer {TEAM}"}) as client,
    ):
        path = f"/v1/files/{(await put(client, contents)).json()['id']}/content"
        (tmp_path / path.removeprefix("/v1/").removesuffix("/content")).write_bytes(contents[:-1] + b"x")
        async with await served.connect() as stream:
            await stream.send(f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TEAM}\r\n\r\n".encode())
            with anyio.fail_after(10):
                assert 0 < len(await read_all(stream)) < len(contents)
        part = await client.get(path, headers={"range": "bytes=0-9"})
        assert part.content == contents[:10]


async def test_a_download_is_larger_than_a_piece(client: httpx2.AsyncClient) -> None:
    contents = bytes(range(256)) * 4096
    path = f"/v1/files/{(await put(client, contents)).json()['id']}/content"
    assert (await client.get(path)).content == contents
    part = await client.get(path, headers={"range": "bytes=262143-786432"})
    assert part.content == contents[262143:786433]


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("in.jsonl", "in.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\temp\\in.jsonl", "in.jsonl"),
        ("a\0b\r\nc\u202egnp.exe", "abcgnp.exe"),
        ("..", "file"),
        ("", "file"),
        ("/", "file"),
        ("日本 語.jsonl", "日本 語.jsonl"),
        ("x" * 300, "x" * 255),
    ],
)
def test_a_filename_is_stored_as_a_name_alone(sent: str, stored: str) -> None:
    assert base_name(sent) == stored


async def test_the_master_key_sees_the_files_of_all(tmp_path: Path) -> None:
    settings = file_settings(tmp_path)
    async with calling(FakeTransport(), settings, TEAM) as team, calling(FakeTransport(), settings, MASTER) as master:
        file = (await put(team)).json()
        assert (await master.get("/v1/files")).json()["data"] == [file]
        assert (await master.get(f"/v1/files/{file['id']}/content")).content == JSONL
        own = (await put(master)).json()
        assert (await team.get("/v1/files")).json()["data"] == [file]
        assert (await master.get("/v1/files")).json()["data"] == [own, file]


async def test_a_gateway_without_keys_has_files_too(tmp_path: Path) -> None:
    async with calling(FakeTransport(), file_settings(tmp_path, keys=())) as client:
        file = (await put(client)).json()
        assert (await client.get("/v1/files")).json()["data"] == [file]
