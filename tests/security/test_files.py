"""S33, S36-S41, S43: files that are meant to harm, and keys that reach for the files of others."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import msgspec
import pytest
from anyio.abc import SocketStream
from fakes.edges import TEAM, Served, calling, read_all, serving
from fakes.transport import FakeTransport
from fakes.uploads import JSONL, OTHER, field, file_part, file_settings, form, kept, put
from fakes.waiting import wait_until

from ingress import transfer
from pipeline.settings import IngressSettings, Settings
from pipeline.stores import local
from pipeline.stores.files import new_file_id

pytestmark = pytest.mark.anyio

FORM = {"content-type": "multipart/form-data; boundary=x"}
GOOD = form(field("purpose", "batch"), file_part())
BEGUN = GOOD.partition(JSONL)[0]
"""A form up to the first byte of its file."""


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with calling(FakeTransport(), file_settings(tmp_path), TEAM) as found:
        yield found


def settings_with(directory: Path, **ingress: Any) -> Settings:
    return msgspec.structs.replace(file_settings(directory), ingress=IngressSettings(**ingress))


def head(method: str, path: str, *headers: str, key: str = TEAM) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: x", f"authorization: Bearer {key}", *headers, "", ""]
    return "\r\n".join(lines).encode()


async def exchange(served: Served, request: bytes) -> tuple[int, bytes]:
    """Send a request on a connection of its own and return status and body of the answer."""
    async with await served.connect() as client:
        await client.send(request)
        with anyio.fail_after(10):
            answer = await read_all(client)
    first, _, body = answer.partition(b"\r\n\r\n")
    return int(first.split(b" ")[1]), body


# What is uploaded


async def test_s33_a_boundary_of_10_kb_is_refused(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    for boundary in ("-" * 10_000, "-" * 71, "", '"'):
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        response = await client.post("/v1/files", content=b"-" * 100_000, headers=headers)
        assert response.status_code == 400
    assert kept(tmp_path) == []


async def test_s33_a_body_of_dashes_takes_no_longer_than_another(client: httpx2.AsyncClient) -> None:
    headers = {"content-type": f"multipart/form-data; boundary={'-' * 70}"}
    for body in (b"-" * 2**22, b"\r\n" + b"-" * 2**22, b"\r\n--" * 2**20, b"\r" * 2**22):
        begun = time.process_time()
        response = await client.post("/v1/files", content=body, headers=headers)
        assert response.status_code == 400
        assert time.process_time() - begun < 1


FORMS = {
    "1,001 parts": form(*[field(f"f{n}", "x") for n in range(999)], field("purpose", "batch"), file_part()),
    "1,001 files": form(*[file_part(name=b"f%d" % n) for n in range(1001)]),
    "two files": form(field("purpose", "batch"), file_part(), file_part()),
    "a header of 100 kB": form(b"x: " + b"y" * 100_000 + b"\r\n" + file_part()),
    "a hundred headers": form(b"".join(b"x%d: y\r\n" % n for n in range(100)) + file_part()),
    "a name of a field of 100 kB": form(field("n" * 100_000, "x")),
    "a field of 1 MB": form(field("purpose", "b" * 2**20)),
    "a header without an end": b"--x\r\ncontent-disposition: form-data; name=" + b"y" * 10_000,
    "a header with a zero byte": form(b"content\0-disposition: x\r\n\r\n"),
    "a folded header": form(b"content-disposition: form-data;\r\n name=purpose\r\n\r\nbatch"),
}


@pytest.mark.parametrize("name", FORMS)
async def test_s33_a_form_that_is_a_bomb_is_refused(client: httpx2.AsyncClient, tmp_path: Path, name: str) -> None:
    response = await client.post("/v1/files", content=FORMS[name], headers=FORM)
    assert response.status_code == 400
    assert kept(tmp_path) == []


async def test_s33_what_follows_a_form_is_bounded_too(tmp_path: Path) -> None:
    async with calling(FakeTransport(), file_settings(tmp_path, max_upload_bytes=1000), TEAM) as client:
        for flood in (GOOD + b"x" * 2**21, b"\r\n" * 2**21 + GOOD):

            async def pieces(flood: bytes = flood) -> AsyncIterator[bytes]:
                yield flood

            assert (await client.post("/v1/files", content=pieces(), headers=FORM)).status_code == 413
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"../../etc/cron.d/x", "x"),
        (b"..\\\\..\\\\boot.ini", "boot.ini"),
        (b"/absolute", "absolute"),
        (b"a\0.jsonl", "a.jsonl"),
        ("\u202elnosj.exe".encode(), "lnosj.exe"),
        (b"..", "file"),
        (b"\xff", None),
    ],
)
async def test_s33_a_filename_is_data(
    client: httpx2.AsyncClient, tmp_path: Path, sent: bytes, shown: str | None
) -> None:
    response = await client.post(
        "/v1/files", content=form(field("purpose", "batch"), file_part(filename=sent)), headers=FORM
    )
    if shown is None:
        assert response.status_code == 400
        return
    file = response.json()
    assert file["filename"] == shown
    assert kept(tmp_path) == [file["id"], f"{file['id']}.json"]


# S36, S37, S38: ids


async def test_s36_every_id_that_is_not_yours_gets_the_same_404(tmp_path: Path) -> None:
    async with serving(FakeTransport(), file_settings(tmp_path)) as served:
        async with httpx2.AsyncClient(base_url=served.url, headers={"authorization": f"Bearer {OTHER}"}) as other:
            theirs = (await put(other)).json()["id"]
            deleted = (await put(other)).json()["id"]
            await other.delete(f"/v1/files/{deleted}")
        names = [
            theirs, deleted, new_file_id(), theirs.upper(), theirs[:-1], theirs + "0", theirs + ".json", theirs + "%00",
            "file-abc123", "file-" + "g" * 32, "x" * 10_000, "..%2f..%2fetc%2fpasswd", "%2e%2e%2fup.lock",
            "..", "../up.lock", "/etc/passwd", f"..%2ffiles%2f{theirs}", f"x/../{theirs}", "%ff", "%e2%80%ae", "*",
        ]  # fmt: skip
        said = set()
        for name in names:
            for method, path in (("GET", name), ("GET", f"{name}/content"), ("DELETE", name)):
                status, body = await exchange(served, head(method, f"/v1/files/{path}", "connection: close"))
                error = json.loads(body)["error"]
                del error["request_id"]
                said.add((status, json.dumps(error)))
        assert len(said) == 1
        assert next(iter(said))[0] == 404
        assert theirs not in str(said)
    assert kept(tmp_path) == [theirs, f"{theirs}.json"]


async def test_s37_no_key_lists_pages_through_or_uses_what_is_anothers(tmp_path: Path) -> None:
    settings = file_settings(tmp_path)
    async with calling(FakeTransport(), settings, TEAM) as team, calling(FakeTransport(), settings, OTHER) as other:
        theirs, own = (await put(other)).json(), (await put(team)).json()
        assert (await team.get("/v1/files")).json()["data"] == [own]
        assert (await team.get("/v1/files", params={"after": theirs["id"]})).status_code == 404
        assert (await team.delete(f"/v1/files/{theirs['id']}")).status_code == 404
        assert (await other.get(f"/v1/files/{theirs['id']}/content")).content == JSONL


async def test_s38_ids_are_of_128_bits_and_tell_nothing(client: httpx2.AsyncClient) -> None:
    ids = [(await put(client)).json()["id"] for _ in range(8)]
    assert all(re.fullmatch(r"file-[0-9a-f]{32}", name) for name in ids)
    for place in range(5, 37, 8):
        assert len({name[place : place + 8] for name in ids}) == 8, "a part that is the same in all may be a time"


# S39, S40, S43: downloads

BOMBS = [
    "bytes=" + ",".join("0-" for _ in range(1000)),
    "bytes=0-1,2-3",
    "bytes=" + "9" * 5000 + "-",
    "bytes=-" + "9" * 5000,
    "bytes=-0",
    "bytes=-",
    "bytes=5-4",
    "bytes=100000-",
    "bytes= 0-1",
    "bytes=0-1 ",
    "bytes=0x0-1",
    "bytes=٠-١",
]


@pytest.mark.parametrize("wanted", BOMBS, ids=lambda text: text[:20])
async def test_s39_a_range_is_one_and_inside_the_file_or_refused(client: httpx2.AsyncClient, wanted: str) -> None:
    path = f"/v1/files/{(await put(client)).json()['id']}/content"
    begun = time.process_time()
    response = await client.get(path, headers=[(b"range", wanted.strip().encode())])
    if wanted == "bytes=0-1 ":
        assert response.status_code == 206  # blanks around a header's value are none of its own
        return
    assert response.status_code == 416
    assert response.json()["error"]["code"] == "range_not_satisfiable"
    assert response.headers["content-range"] == f"bytes */{len(JSONL)}"
    assert time.process_time() - begun < 0.5


async def test_s40_a_file_that_is_deleted_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    contents = bytes(range(256)) * 2**14
    async with serving(FakeTransport(), file_settings(tmp_path)) as served:
        headers = {"authorization": f"Bearer {TEAM}"}
        async with httpx2.AsyncClient(base_url=served.url, headers=headers) as client:
            path = f"/v1/files/{(await put(client, contents)).json()['id']}"
            async with client.stream("GET", f"{path}/content") as response:
                pieces = response.aiter_bytes()
                first = await anext(pieces)
                assert (await client.delete(path)).json()["deleted"] is True
                assert kept(tmp_path) == []
                assert first + b"".join([piece async for piece in pieces]) == contents


@pytest.mark.parametrize("filename", ['a"b\\\\c;d.html', "x\u00e9\u65e5.svg", "a'b%0d%0ax: y", "<script>"])
async def test_s43_a_download_is_a_file_to_keep_whatever_its_name(client: httpx2.AsyncClient, filename: str) -> None:
    quoted = filename.replace('"', '\\"').encode()
    body = form(field("purpose", "user_data"), file_part(b"<script>", quoted))
    file = (await client.post("/v1/files", content=body, headers=FORM)).json()
    headers = (await client.get(f"/v1/files/{file['id']}/content")).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-type"] == "application/octet-stream"
    assert re.fullmatch(
        r"attachment; filename=\"[A-Za-z0-9._ -]*\"; filename\*=UTF-8''[A-Za-z0-9._~%-]*",
        headers["content-disposition"],
    )


# S41: how much


async def test_s41_a_key_over_its_quota_is_refused_and_others_are_not(tmp_path: Path) -> None:
    settings = file_settings(tmp_path, max_file_bytes_per_key=2 * len(JSONL))
    async with calling(FakeTransport(), settings, TEAM) as team, calling(FakeTransport(), settings, OTHER) as other:
        first = (await put(team)).json()["id"]
        assert (await put(team)).status_code == 200
        refused = await put(team)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "file_quota_exceeded")
        assert (await put(other)).status_code == 200
        assert len(kept(tmp_path)) == 6
        await team.delete(f"/v1/files/{first}")
        assert (await put(team)).status_code == 200


# Slow clients, and those that leave


async def send_slowly(client: SocketStream, pieces: list[bytes], pause: float) -> bytes:
    for piece in pieces:
        await client.send(piece)
        await anyio.sleep(pause)  # a pause is what is tested
    return await client.receive()


async def test_a_slow_upload_that_goes_on_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "LEAST_RATE", 100)
    async with (
        serving(FakeTransport(), settings_with(tmp_path, body_timeout=0.3, request_timeout=0.5)) as served,
        await served.connect() as client,
    ):
        body = form(field("purpose", "batch"), file_part(b"x" * 1000))
        announced = (f"content-length: {len(body)}", "content-type: multipart/form-data; boundary=x")
        pieces = [head("POST", "/v1/files", *announced), *(body[n : n + 100] for n in range(0, len(body), 100))]
        with anyio.fail_after(10):
            assert b" 200 OK" in await send_slowly(client, pieces, 0.1)


@pytest.mark.parametrize("rate", [1, 10**9])
async def test_an_upload_that_stalls_or_only_drips_is_a_408_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int
) -> None:
    monkeypatch.setattr(transfer, "LEAST_RATE", rate)
    settings = settings_with(tmp_path, body_timeout=0.2)
    async with serving(FakeTransport(), settings) as served, await served.connect() as client:
        announced = ("content-length: 10000", "content-type: multipart/form-data; boundary=x")
        await client.send(head("POST", "/v1/files", *announced) + BEGUN)
        async with anyio.create_task_group() as tasks:
            if rate > 1:  # never a long pause, and yet no end in sight

                async def drip() -> None:
                    while True:
                        await client.send(b"x")
                        await anyio.sleep(0.02)

                tasks.start_soon(drip)
            with anyio.fail_after(10):
                assert b" 408 " in await client.receive()
            tasks.cancel_scope.cancel()
        await wait_until(lambda: kept(tmp_path) == [])
        assert served.edge.transfers == 0


async def test_an_upload_whose_client_leaves_leaves_nothing(tmp_path: Path) -> None:
    async with serving(FakeTransport(), file_settings(tmp_path)) as served:
        async with await served.connect() as client:
            announced = (f"content-length: {2**30}", "content-type: multipart/form-data; boundary=x")
            await client.send(head("POST", "/v1/files", *announced) + BEGUN + b"x" * 2**21)
            await wait_until(lambda: any(name.endswith(".part") for name in kept(tmp_path)))
        await wait_until(lambda: kept(tmp_path) == [] and served.edge.transfers == 0)


def count_pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets an entry for each piece of a blob that is read from now on."""
    pieces: list[int] = []
    read = local._LocalBlob.read

    async def counting(blob: local._LocalBlob, offset: int, length: int) -> bytes:
        pieces.append(offset)
        return await read(blob, offset, length)

    monkeypatch.setattr(local._LocalBlob, "read", counting)
    return pieces


async def test_a_download_whose_client_leaves_or_reads_nothing_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(FakeTransport(), settings_with(tmp_path, body_timeout=0.5)) as served:
        headers = {"authorization": f"Bearer {TEAM}"}
        async with httpx2.AsyncClient(base_url=served.url, headers=headers) as client:
            file_id = (await put(client, b"x" * (32 * 2**20))).json()["id"]
        monkeypatch.setattr(transfer, "LEAST_RATE", 10**9)
        pieces = count_pieces(monkeypatch)
        wanted = head("GET", f"/v1/files/{file_id}/content")
        async with await served.connect() as client:
            await client.send(wanted)
            await client.receive(1)
        await wait_until(lambda: served.edge.transfers == 0)
        assert 0 < len(pieces) < 100, "it was read to its end for nobody"
        async with await served.connect() as client:
            await client.send(wanted)
            await client.receive(1)
            await wait_until(lambda: served.edge.transfers == 0)
            with anyio.fail_after(5):
                assert len(await read_all(client)) < 32 * 2**20


async def test_a_key_is_asked_for_before_a_byte_is_stored(tmp_path: Path) -> None:
    async with serving(FakeTransport(), file_settings(tmp_path)) as served:
        announced = (f"content-length: {2**30}", "content-type: multipart/form-data; boundary=x", "connection: close")
        status, _ = await exchange(served, head("POST", "/v1/files", *announced, key="sk-wrong") + GOOD)
    assert status == 401
    assert kept(tmp_path) == []


async def test_a_refusal_reaches_a_client_that_is_still_sending(tmp_path: Path) -> None:
    async with serving(FakeTransport(), file_settings(tmp_path, max_upload_bytes=1000)) as served:
        headers = {"authorization": f"Bearer {TEAM}"}
        async with httpx2.AsyncClient(base_url=served.url, headers=headers) as client:
            response = await put(client, b"x" * (8 * 2**20))
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


async def test_a_purpose_of_no_use_is_told_before_the_file_has_arrived(tmp_path: Path) -> None:
    async with serving(FakeTransport(), file_settings(tmp_path)) as served, await served.connect() as client:
        announced = (f"content-length: {2**30}", "content-type: multipart/form-data; boundary=x")
        await client.send(head("POST", "/v1/files", *announced) + BEGUN.replace(b"batch", b"evals"))
        with anyio.fail_after(10):
            assert b" 400 " in await client.receive()
