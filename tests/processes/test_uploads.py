"""Uploads to a real ingress process: its memory, its death, and a directory that is shared by two of them."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fakes.gateways import Gateway, start_gateway
from fakes.uploads import JSONL, field, file_part, form, kept
from fakes.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.anyio]

MEBIBYTE = 2**20
BEGUN, _, REST = form(field("purpose", "batch"), file_part()).partition(JSONL)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with start_gateway(tmp_path) as found:
        yield found


def begin_upload(gateway: Gateway, size: int) -> http.client.HTTPConnection:
    """Send an upload of `size` bytes up to the first of them."""
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=30)
    connection.putrequest("POST", "/v1/files")
    connection.putheader("content-type", "multipart/form-data; boundary=x")
    connection.putheader("content-length", str(len(BEGUN) + size + len(REST)))
    connection.endheaders(BEGUN)
    return connection


def answer(connection: http.client.HTTPConnection) -> Any:
    response = connection.getresponse()
    data = response.read()
    assert response.status == 200, data
    return json.loads(data)


def ask(gateway: Gateway, path: str) -> bytes:
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=30)
    connection.request("GET", path)
    try:
        return connection.getresponse().read()
    finally:
        connection.close()


def resident(pid: int) -> int:
    """Return a process's resident bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_memory_does_not_grow_with_the_file(gateway: Gateway) -> None:
    ingress = gateway.child("pipeline ingress")
    before = resident(ingress)
    connection, most, block = begin_upload(gateway, 200 * MEBIBYTE), 0, b"x" * MEBIBYTE
    for _ in range(200):
        connection.send(block)
        most = max(most, resident(ingress))
    connection.send(REST)
    file = answer(connection)
    connection.request("GET", f"/v1/files/{file['id']}/content")
    response = connection.getresponse()
    while response.read(MEBIBYTE):
        most = max(most, resident(ingress))
    connection.close()
    assert file["bytes"] == 200 * MEBIBYTE
    assert most - before < 24 * MEBIBYTE


async def test_an_ingress_that_is_killed_during_an_upload_leaves_no_file(gateway: Gateway, tmp_path: Path) -> None:
    directory = tmp_path / ".promptmill"
    connection = begin_upload(gateway, 100 * MEBIBYTE)
    connection.send(b"x" * 10 * MEBIBYTE)
    await wait_until(lambda: any(path.stat().st_size for path in directory.glob("files/*.part")))
    killed = gateway.child("pipeline ingress")
    os.kill(killed, signal.SIGKILL)
    await wait_until(lambda: gateway.child("pipeline ingress") not in (0, killed), timeout=20)
    connection.close()
    await wait_until(lambda: b"gpt-4" in reachable(gateway), timeout=20)
    assert json.loads(ask(gateway, "/v1/files"))["data"] == []
    assert [name for name in kept(directory) if not name.endswith(".part")] == []
    connection = begin_upload(gateway, MEBIBYTE)
    connection.send(b"x" * MEBIBYTE + REST)
    file = answer(connection)
    connection.close()
    assert json.loads(ask(gateway, "/v1/files"))["data"] == [file]


def reachable(gateway: Gateway) -> bytes:
    try:
        return ask(gateway, "/v1/models")
    except OSError:
        return b""


async def test_two_ingress_processes_serve_each_others_files(tmp_path: Path) -> None:
    with start_gateway(tmp_path, "--scale", "ingress=2") as gateway:
        connection = begin_upload(gateway, len(JSONL))
        connection.send(JSONL + REST)
        file = answer(connection)
        connection.close()
        for _ in range(20):  # each on a connection of its own, which either process may get
            assert json.loads(ask(gateway, f"/v1/files/{file['id']}")) == file
            assert json.loads(ask(gateway, "/v1/files"))["data"] == [file]
