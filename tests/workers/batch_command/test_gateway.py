"""The command's side of HTTP: what a gateway answers, and what happens when it does not."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.upstream import CUT, Answer, Received, ScriptedUpstream, raw, reply, run_upstream_in_thread

from pipeline import lockfile
from pipeline.errors import ConfigurationError, FileDamaged, NotFound, StorageFull
from workers.batch_command import watching
from workers.batch_command.gateway import Gateway, GatewayAway, GatewayGone, read_batch
from workers.batch_command.outputs import Targets, collect, fetch
from workers.batch_command.places import Place
from workers.batch_command.screens import Lines
from workers.batch_command.watching import watch

BATCH = {"id": "batch_1", "endpoint": "/v1/x", "input_file_id": "file-1", "created_at": 1}


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedUpstream]:
    with run_upstream_in_thread() as running:
        yield running


@pytest.fixture
def gateway(server: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setattr(watching, "PAUSE", 0.01)
    server.requests.clear()
    opened = Gateway(lambda: server.url, "sk-mine")
    yield opened
    opened.close()


def refusal(status: int, message: str = "no") -> Answer:
    return reply({"error": {"message": message, "hint": "do this", "code": "x", "type": "y", "param": None}}, status)


def etag(contents: bytes) -> str:
    return f'"{hashlib.sha256(contents).hexdigest()}"'


def stored(contents: bytes, as_if: bytes | None = None) -> Callable[[Received], Answer]:
    """Answer with the part of a file that is asked for, and the checksum that it, or another one, has."""

    def part(received: Received) -> Answer:
        start = int(received.headers["range"].removeprefix("bytes=").removesuffix("-"))
        wanted, there = contents[start:], contents if as_if is None else as_if
        return reply(wanted, 206 if wanted else 416, {"etag": etag(there)})

    return part


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (refusal(401), ConfigurationError, "does not take the key"),
        (refusal(400, "bad endpoint"), ConfigurationError, "bad endpoint"),
        (refusal(404), NotFound, "no"),
        (refusal(503), GatewayAway, "cannot serve now"),
        (reply(b"<html>", 418), ConfigurationError, "not as promptmill does"),
        (raw(CUT), GatewayAway, "cannot be reached"),
    ],
)
def test_what_a_gateway_refuses_is_told_in_words(
    server: ScriptedUpstream, gateway: Gateway, answer: Answer, error: type[Exception], words: str
) -> None:
    server.script(answer)
    with pytest.raises(error, match=words) as raised:
        gateway.check()
    assert "sk-mine" not in str(raised.value)


def test_the_key_and_no_other_is_sent(server: ScriptedUpstream, gateway: Gateway) -> None:
    server.script(reply({"data": []}))
    gateway.check()
    assert server.requests[0].path == "/v1/batches?limit=1"
    assert server.requests[0].headers["authorization"] == "Bearer sk-mine"


def test_an_upload_says_how_long_it_is_and_keeps_its_name_in_its_place(
    server: ScriptedUpstream, gateway: Gateway
) -> None:
    server.script(reply({"id": "file-1"}))
    assert gateway.upload('a"\r\nb.jsonl', 6, iter([b"abc", b"def"])) == "file-1"
    (request,) = server.requests
    assert "transfer-encoding" not in request.headers
    assert b'filename="a___b.jsonl"\r\n\r\nabcdef\r\n--' in request.body


def test_watching_goes_on_when_the_gateway_is_back(
    server: ScriptedUpstream, gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script(raw(CUT), refusal(503), reply({**BATCH, "status": "completed"}))
    assert watch(gateway, "batch_1", Lines("in")).ended
    said = capsys.readouterr().err.splitlines()
    assert "cannot be reached" in said[0]
    assert said[1] == "the gateway is back"


def test_a_gateway_that_moves_is_followed(server: ScriptedUpstream) -> None:
    urls = iter(["http://127.0.0.1:9", server.url])
    gateway = Gateway(lambda: next(urls), "any")
    with pytest.raises(GatewayAway, match=r"127\.0\.0\.1:9"):
        gateway.check()
    server.script(reply({"data": []}))
    gateway.check()
    gateway.close()


def test_a_gateway_that_was_started_for_a_batch_is_not_waited_for_when_it_has_ended(
    server: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PROMPTMILL_URL", raising=False)
    server.script(reply({"data": []}), raw(CUT))
    with lockfile.hold(tmp_path) as lock:
        lock.publish(lockfile.Running(pid=os.getpid(), url=server.url))
        gateway = Place(data_dir=str(tmp_path)).open(started=os.getpid())
    with pytest.raises(GatewayGone, match="has ended; its log is"):
        watch(gateway, "batch_1", Lines("in"))
    gateway.close()


def test_a_download_that_was_cut_goes_on_where_it_was(
    server: ScriptedUpstream, gateway: Gateway, tmp_path: Path
) -> None:
    contents = json.dumps({"custom_id": "a", "text": "x" * 100_000}).encode() + b"\n"
    head = b"HTTP/1.1 206 Partial Content\r\ncontent-length: %d\r\netag: %b\r\n\r\n"
    begun = head % (len(contents), etag(contents).encode())
    server.script(raw(begun, contents[:60_000], 0.2, CUT), stored(contents))
    fetch(gateway, "file-12345678", tmp_path / "out", Lines("out"))
    assert (tmp_path / "out").read_bytes() == contents
    assert 0 < int(server.requests[1].headers["range"][6:-1]) <= 60_000
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "out2.12345678.part").write_bytes(contents)
    server.script(reply(b"", 416, {"etag": etag(contents)}))
    fetch(gateway, "file-12345678", tmp_path / "out2", Lines("out"))
    assert (tmp_path / "out2").read_bytes() == contents


@pytest.mark.parametrize("here", [b"", b"Some of", b"some of it, and more"])
def test_what_comes_as_another_file_than_was_stored_is_not_kept(
    server: ScriptedUpstream, gateway: Gateway, tmp_path: Path, here: bytes
) -> None:
    (tmp_path / "out.12345678.part").write_bytes(here)
    server.script(stored(b"Some of it.", as_if=b"some of it."))
    with pytest.raises(FileDamaged, match="its checksum differs"):
        fetch(gateway, "file-12345678", tmp_path / "out", Lines("out"))
    assert list(tmp_path.iterdir()) == []


def test_a_line_of_results_without_a_custom_id_is_not_passed_over(
    server: ScriptedUpstream, gateway: Gateway, tmp_path: Path
) -> None:
    ended = read_batch(json.dumps({**BATCH, "status": "completed", "output_file_id": "file-12345678"}))
    server.script(stored(b'{"custom_id":"a"}\nnonsense\n'))
    with pytest.raises(FileDamaged, match="has no custom_id"):
        collect(gateway, ended, Targets(tmp_path / "out"), set(), Lines("out"), again="this")
    assert not (tmp_path / "out").exists()


def test_a_file_whose_checksum_is_lost_on_the_way_is_not_taken(server: ScriptedUpstream, gateway: Gateway) -> None:
    server.script(reply(b"all of it", 206))
    with pytest.raises(ConfigurationError, match="ETag"), gateway.content("file-1"):
        pass


def test_results_that_cannot_be_written_are_told_and_not_mixed_with_those_of_another_command(
    server: ScriptedUpstream, gateway: Gateway, tmp_path: Path
) -> None:
    with pytest.raises(StorageFull, match="cannot be written beside"):
        fetch(gateway, "file-12345678", tmp_path / "nowhere" / "out", Lines("out"))
    with (tmp_path / "out.12345678.part").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="another command is writing"):
            fetch(gateway, "file-12345678", tmp_path / "out", Lines("out"))
    assert server.requests == []


def test_an_answer_with_another_part_of_a_file_is_not_taken(server: ScriptedUpstream, gateway: Gateway) -> None:
    server.script(*[reply(b"all of it", 200, {"etag": etag(b"all of it")})] * 2)
    with pytest.raises(GatewayAway, match="part of a file"), gateway.content("file-1", 3):
        pass
    with gateway.content("file-1") as found:
        assert (found.size, b"".join(found.pieces)) == (9, b"all of it")


def test_what_is_given_as_an_id_leads_nowhere_else(server: ScriptedUpstream, gateway: Gateway) -> None:
    for ask in (gateway.batch, gateway.cancel):
        server.script(refusal(404))
        with pytest.raises(NotFound):
            ask("../files")
    assert [seen.path for seen in server.requests] == ["/v1/batches/..%2Ffiles", "/v1/batches/..%2Ffiles/cancel"]
